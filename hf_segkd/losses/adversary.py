"""A discriminator with its own optimizer, beside the student: the adversarial part of SKDS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_segkd.losses.base import require_choice, require_positive
from hf_segkd.losses.discriminator import Discriminator
from hf_segkd.losses.distributed import all_reduce_sum, world_size

Objective = Literal["wgan-gp", "hinge"]

# Values of the released code of SKDS, IFVD and CIRKD alike.
GRADIENT_PENALTY_WEIGHT = 10.0
DISCRIMINATOR_WEIGHT = 0.1


def adversarial_loss(student_scores: Tensor, teacher_scores: Tensor, objective: Objective = "wgan-gp") -> Tensor:
    r"""What the discriminator minimises, without the gradient penalty.

    `wgan-gp` $E[D(s)] - E[D(t)]$; `hinge` $E[\max(0, 1 + D(s))] + E[\max(0, 1 - D(t))]$.

    Args:
        student_scores: D(s), of any shape.
        teacher_scores: D(t), of any shape.
        objective: `wgan-gp` or `hinge`.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([0.5]), torch.tensor([2.0])
        >>> [adversarial_loss(student, teacher, objective).item() for objective in ("wgan-gp", "hinge")]
        [-1.5, 1.5]
    """
    if objective == "hinge":
        return F.relu(1.0 + student_scores).mean() + F.relu(1.0 - teacher_scores).mean()
    return student_scores.mean() - teacher_scores.mean()


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], student_logits: Tensor, teacher_logits: Tensor, share: Tensor
) -> Tensor:
    r"""WGAN-GP: mean over the images of $(\| \nabla_x \sum D(x) \| - 1)^2$ at mixed logits $x = a t + (1 - a) s$.

    Args:
        discriminator: D.
        student_logits: s, (b, k, h, w); its gradient is not tracked.
        teacher_logits: t, (b, k, h, w); its gradient is not tracked.
        share: a, the teacher's share in the mix, (b, 1, 1, 1), 0 to 1.
    """
    mixed = (share * teacher_logits + (1.0 - share) * student_logits).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
    square = gradient.square().sum(dim=(1, 2, 3))
    # The root has no derivative at 0.
    return (square.clamp_min(1e-20).sqrt() - 1.0).square().mean()


class Adversary(nn.Module):
    r"""The student's term $-E[D(s)]$, and the training of D.

    D is a submodule, so it moves, saves and loads with the loss, and DDP starts it alike on all processes; but its
    parameters ask for no gradient outside `learn`, and its gradients are kept in a vector of their own. So the
    student's optimizer, `zero_grad`, gradient clipping and DDP's gradient sync pass it by. An object outside the
    module tree would have to do all of the former by itself.

    A step: the loss's forward, `learn` for each batch accumulated, `update`. The trainer's `AdversaryCallback`
    (`hf_segkd.training.callbacks`) does so, and methods without an adversary never meet it.

    Args:
        num_labels: Number of classes of the logits.
        objective: `wgan-gp` (SKDS, IFVD) with a gradient penalty of weight 10, or `hinge` (CIRKD).
        optimizer: `sgd`, momentum 0.9, weight decay 5e-4 and polynomial decay of power 0.9 (SKDS); or `adam`, betas 0.9
            and 0.99, at a constant rate (CIRKD; IFVD's decays like SKDS's).
        learning_rate: Of D, 4e-4 in all three. D's loss has the weight 0.1 in all three.

    Attributes:
        batches_learnt: Batches since the last update.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        num_labels: int,
        objective: Objective = "wgan-gp",
        optimizer: Literal["sgd", "adam"] = "sgd",
        learning_rate: float = 4e-4,
    ) -> None:
        super().__init__()
        require_choice("objective", objective, get_args(Objective))
        require_choice("optimizer", optimizer, ("sgd", "adam"))
        require_positive("learning_rate", learning_rate)
        self.objective = objective
        self.learning_rate = learning_rate
        self.discriminator = Discriminator(num_labels).requires_grad_(False)
        parameters = list(self.discriminator.parameters())
        self.optimizer: torch.optim.Optimizer
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, learning_rate, momentum=0.9, weight_decay=5e-4)
            self.decay_power = 0.9
        else:
            self.optimizer = torch.optim.Adam(parameters, learning_rate, betas=(0.9, 0.99))
            self.decay_power = 0.0
        self._logits: tuple[Tensor, Tensor] | None = None
        self._gradient: Tensor | float = 0.0  # of all parameters in one vector, summed since the last update
        self.batches_learnt = 0

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The student's term; in training mode the logits (b, k, h, w), detached, are kept for `learn`."""
        if self.training:
            self._logits = student_logits.detach(), teacher_logits.detach()
        return -self.discriminator(student_logits).mean()

    def learn(self, generator: np.random.Generator) -> Tensor:
        """Take D's gradient on the logits of the last forward.

        Args:
            generator: Draws the mix of the gradient penalty.

        Returns:
            D's loss with its gradient penalty, before the weight 0.1, a scalar for the log.
        """
        assert self._logits is not None, "learn comes after a forward in training mode"
        (student, teacher), self._logits = self._logits, None
        self.discriminator.requires_grad_()
        try:
            with torch.autocast(device_type=student.device.type, enabled=False):
                loss = self._loss(student, teacher, generator)
                gradients = torch.autograd.grad(DISCRIMINATOR_WEIGHT * loss, list(self.discriminator.parameters()))
        finally:  # a failure, of memory perhaps, must not leave the student's backward pass gradients to D
            self.discriminator.requires_grad_(False)
        self._gradient = self._gradient + torch.cat([gradient.flatten() for gradient in gradients])
        self.batches_learnt += 1
        return loss.detach()

    def _loss(self, student: Tensor, teacher: Tensor, generator: np.random.Generator) -> Tensor:
        teacher_scores = self.discriminator(teacher)
        loss = adversarial_loss(self.discriminator(student), teacher_scores, self.objective)
        if self.objective == "hinge":
            return loss
        share = torch.from_numpy(generator.random((len(student), 1, 1, 1))).to(student)
        return loss + GRADIENT_PENALTY_WEIGHT * gradient_penalty(self.discriminator, student, teacher, share)

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """One step of D's optimizer, with the mean gradient of the batches learnt on all processes.

        Args:
            progress: Fraction (0 to 1) of training that has passed.

        Raises:
            FloatingPointError: On every process, if that gradient is not finite; D is as it was before.
        """
        gradient = all_reduce_sum(self._gradient / self.batches_learnt) / world_size()
        self.forget()
        if not gradient.isfinite().all():
            raise FloatingPointError(
                "the gradient of the discriminator is not finite, though the student's terms are. The objective "
                "'hinge' may help, which has no second derivatives. The discriminator's weights are still those "
                "before this step; the student has taken it."
            )
        (group,) = self.optimizer.param_groups
        group["lr"] = self.learning_rate * (1.0 - progress) ** self.decay_power
        pieces = gradient.split([parameter.numel() for parameter in group["params"]])
        for parameter, piece in zip(group["params"], pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forget(self) -> None:
        """Drop the gradients since the last update, and logits that were not learnt from."""
        self._logits, self._gradient, self.batches_learnt = None, 0.0, 0

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The optimizer's state is saved with the module: the learning rate follows from the progress."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                destination[f"{prefix}optimizer.{index}.{name}"] = value

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        beginning = f"{prefix}optimizer."
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key in [key for key in state_dict if key.startswith(beginning)]:
            index, name = key.removeprefix(beginning).split(".")
            state[int(index)][name] = state_dict.pop(key).clone()  # the optimizer changes it in place
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        super()._load_from_state_dict(state_dict, prefix, *args)
