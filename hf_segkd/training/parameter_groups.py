"""`parameter_groups`: the optimizer's groups with their learning rates; `ConnectorsFirst`: the connectors' warm-up."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.distiller import Distiller


def parameter_groups(distiller: Distiller, args: DistillationArguments) -> list[dict[str, Any]]:
    """Parameters with the learning rates of backbone, head and connectors, and one weight decay for all.

    Heads and connectors learn at 10 times the backbone's rate in the papers' code; weight decay is on biases and
    batch norms too.
    """
    backbone_prefix = f"student.{distiller.network.base_model_prefix}."
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in distiller.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("loss."):
            groups[args.connector_lr_multiplier].append(parameter)
        elif name.startswith(backbone_prefix):
            groups[1.0].append(parameter)
        else:
            groups[args.head_lr_multiplier].append(parameter)
    return [
        {"params": parameters, "lr": multiplier * args.scaled_learning_rate, "weight_decay": args.weight_decay}
        for multiplier, parameters in groups.items()
    ]


def require_all_parameters(optimizer: torch.optim.Optimizer, distiller: Distiller) -> None:
    """Refuse an optimizer that was built elsewhere and would leave a part of the run untrained.

    Raises:
        ValueError: If it does not hold all parameters that are to learn.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, value in distiller.named_parameters() if value.requires_grad and id(value) not in held]
    if missing:
        raise ValueError(
            f"The optimizer that was passed does not hold {len(missing)} trainable parameters, such as {missing[0]}: "
            "they would never learn. Leave optimizers out (they are built from args), or freeze what shall not train."
        )


logger = logging.get_logger(__name__)


class ConnectorsFirst:
    """Trains only the loss's connectors for `connector_epochs` epochs, then all parameters that are not finished.

    A gradient of None keeps the optimizer away from a parameter entirely: no decay, no momentum.

    Args:
        distiller: The student and the loss.
    """

    def __init__(self, distiller: Distiller) -> None:
        self.name, self.epochs = distiller.loss.name, distiller.loss.request.connector_epochs
        self.finished = list(distiller.loss.finished_parameters())
        connectors = {id(parameter) for parameter in distiller.loss.connector_parameters()}
        self.others = [parameter for parameter in distiller.parameters() if id(parameter) not in connectors]

    def warn_if_nothing_else_trains(self, num_train_epochs: int) -> None:
        """Warn if the run ends before the student's turn comes."""
        if num_train_epochs <= self.epochs:
            logger.warning(
                f"{self.name} trains only its connectors in the first {self.epochs} epoch(s), and this run has no "
                "more: the student will learn nothing. Train longer, or set connector_epochs of its method_kwargs to 0."
            )

    def drop_gradients(self, epoch: float | None) -> None:
        """Drop gradients of parameters that do not learn now; call it after backward, before gradients are clipped.

        Args:
            epoch: The epoch in the run's state.
        """
        for parameter in self.others if int(epoch or 0) < self.epochs else self.finished:
            parameter.grad = None
