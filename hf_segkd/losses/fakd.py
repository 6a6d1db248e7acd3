"""FAKD: distillation under endless Gaussian augmentation of the student's features (Yuan et al., 2022)."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from hf_segkd.losses.adapters import align, class_labels, pixel_rows
from hf_segkd.losses.base import (
    AbstractDistillationLoss,
    Presets,
    require_choice,
    require_positive,
    require_same_num_labels,
    require_weight,
)
from hf_segkd.losses.class_covariance import ClassCovariance
from hf_segkd.losses.cwd import CWD_PRESETS
from hf_segkd.losses.fakd_bounds import augmented_channel_wise_divergence, augmented_pixel_wise_divergence
from hf_segkd.types import Features, NetworkSpec, Paper

Schedule = Literal["cosine", "linear", "quarter_cosine", "constant", "cosine_decay"]

# Widest classifier input for which the full covariance is the default: HRNet-W18's, 44 MB for 150 classes.
LARGEST_FULL_COVARIANCE = 270


def augmentation_strength(progress: Tensor, lambda0: float = 1.0, schedule: Schedule = "cosine") -> Tensor:
    r"""$\lambda$ at a fraction t of training, from 0 to `lambda0`.

    Args:
        progress: t, 0 to 1, of any shape.
        lambda0: Largest strength.
        schedule: `cosine` $(1 - \cos \pi t) / 2$, our reading of the paper's "cosine update method"; `linear` t, as
            ISDA; `quarter_cosine` $1 - \cos(\pi t / 2)$; `constant` 1; `cosine_decay` $(1 + \cos \pi t) / 2$.

    Example:
        >>> import torch
        >>> augmentation_strength(torch.tensor([0.0, 0.25, 0.5, 1.0]), lambda0=2.0)
        tensor([0.0000, 0.2929, 1.0000, 2.0000])
    """
    if schedule == "cosine":
        fraction = (1.0 - torch.cos(math.pi * progress)) / 2.0
    elif schedule == "linear":
        fraction = progress
    elif schedule == "quarter_cosine":
        fraction = 1.0 - torch.cos(math.pi / 2.0 * progress)
    elif schedule == "constant":
        fraction = torch.ones_like(progress)
    else:
        fraction = (1.0 + torch.cos(math.pi * progress)) / 2.0
    return lambda0 * fraction


class AbstractFAKDLoss(AbstractDistillationLoss):
    """Algorithm 1: take the batch into the class covariances, then bound the augmented loss with them.

    The statistics are those of the map that enters the student's classifier, before dropout, detached, updated only in
    training mode, and the same on all processes; the classifier's weight is the live one. `set_progress` moves the
    strength lambda, which is 0 until it is called (except with `constant` and `cosine_decay`). Ignored pixels count in
    the loss, without augmentation, and never in the statistics.

    No public code exists; the paper's misprints are mended as `fakd_bounds` says.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term, relative to a cross-entropy averaged over the pixels.
        temperature: Of the softmax, positive.
        lambda0: Largest strength of the augmentation; 0 gives the plain loss. 1 is the best of the paper's Table 5, 2.5
            did harm.
        schedule: How the strength goes from 0 to `lambda0`: `cosine` is our reading of the paper's "cosine update
            method" (Ablation study of lambda), `linear` is ISDA's; see `augmentation_strength`.
        tap: The map that enters the student's classifier (Algorithm 1), before dropout; ISDA takes it after.
        covariance: Of each class's features: `full` matrices (paper), their `diagonal` only, or `auto`: full up to 270
            channels (HRNet-W18's: 44 MB for 150 classes), chosen here.

    Raises:
        ValueError: If a feature is missing, the class counts differ, or a value is out of range.
    """

    paper: ClassVar[Paper] = Paper(
        title="FAKD: Feature Augmented Knowledge Distillation for Semantic Segmentation",
        venue="arXiv 2022",  # this text; WACV 2024 has a later version, by other authors
        arxiv="2208.14143",
        bibtex="""@article{yuan2022fakd,
  title   = {{FAKD: Feature Augmented Knowledge Distillation for Semantic Segmentation}},
  author  = {Yuan, Jianlong and Qi, Qian and Du, Fei and Wang, Zhibin and Wang, Fan and Liu, Yifan},
  journal = {arXiv preprint arXiv:2208.14143},
  year    = {2022}
}""",
        code=None,  # the announced repository holds no code
    )
    needs_labels: ClassVar[bool] = True
    couples_images: ClassVar[bool] = True
    uses_classifier_weight: ClassVar[bool] = True

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 1.0,
        temperature: float = 1.0,
        lambda0: float = 1.0,
        schedule: Schedule = "cosine",
        tap: str = "decoder",
        covariance: Literal["auto", "full", "diagonal"] = "auto",
    ) -> None:
        super().__init__(
            student,
            teacher,
            student_taps=("logits", tap),
            teacher_taps=("logits",),
            weights={self.name: weight},
        )
        require_same_num_labels(self.name, student, teacher)
        require_positive("temperature", temperature)
        require_weight("lambda0", lambda0)
        require_choice("schedule", schedule, get_args(Schedule))
        require_choice("covariance", covariance, ("auto", "full", "diagonal"))
        channels = student.channels[tap]
        if covariance == "auto":
            covariance = "full" if channels <= LARGEST_FULL_COVARIANCE else "diagonal"
        self.tap = tap
        self.temperature = temperature
        self.lambda0 = lambda0
        self.schedule: Schedule = schedule
        self.ignore_index = student.ignore_index
        self.statistics = ClassCovariance(student.num_labels, channels, covariance)
        # A tensor, so that torch.compile meets no new constant at each step. Whoever trains sets it before each
        # step, so checkpoints need not hold it.
        self.register_buffer("progress", torch.zeros(()), persistent=False)

    def set_progress(self, progress: float) -> None:
        """Set the fraction (0 to 1) of training that has passed, on which lambda depends."""
        self.progress.fill_(progress)

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class; updates the statistics in training mode."""
        logits, features = student["logits"], student[self.tap]
        weight = student["classifier_weight"].flatten(1)  # (k, c)
        if features.shape[2:] != logits.shape[2:] or features.shape[1] != weight.shape[1]:
            raise ValueError(
                f"{self.name} needs the map that enters the student's classifier, but {self.tap!r} has shape "
                f"{tuple(features.shape)} beside a classifier weight {tuple(weight.shape)} and logits "
                f"{tuple(logits.shape)}. Name the right map with `tap`."
            )
        labels = class_labels(labels, logits.shape[2:], self.ignore_index)
        if self.training:
            self.statistics.update(pixel_rows(features), labels.flatten())
        covariance = self.statistics.covariance.to(weight.dtype)
        strength = augmentation_strength(self.progress, self.lambda0, self.schedule)
        teacher_logits = align(teacher["logits"], logits)
        return {self.name: self.bound_loss(logits, teacher_logits, labels, weight, covariance, strength)}

    @abstractmethod
    def bound_loss(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        classifier_weight: Tensor,
        covariance: Tensor,
        strength: Tensor,
    ) -> Tensor:
        """The bound on the expected loss; arguments as in `fakd_bounds`."""


class FAKDPDLoss(AbstractFAKDLoss):
    """FAKD, pixel-wise form (eq. 8): KD whose student is augmented in feature space.

    Args:
        weight: Weight of the term. The paper gives none for this form: 1 at temperature 1 are CIRKD's for plain KD
            (TorchDistiller: 10 / k in this reduction).
        temperature: T, positive; 1 as in eq. 8.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> spec = NetworkSpec({"decoder": 512, "logits": 19}, num_labels=19)
        >>> loss = create_loss("fakd_pd", spec, spec, lambda0=0.5)
        >>> loss.weights, loss.statistics.covariance.shape  # diagonal: more than 270 channels
        ({'fakd_pd': 1.0}, torch.Size([19, 512]))
    """

    name: ClassVar[str] = "fakd_pd"
    matches: ClassVar[str] = "`kd` over augmented features, in closed form"

    def bound_loss(self, *tensors: Tensor) -> Tensor:
        """See `augmented_pixel_wise_divergence`."""
        return augmented_pixel_wise_divergence(*tensors, temperature=self.temperature)


class FAKDCWDLoss(AbstractFAKDLoss):
    """FAKD, channel-wise form (eq. 7): CWD whose student is augmented in feature space.

    The paper takes temperature and weight "as CWD" (Compared distillation methods), whose authors use three settings:
    the presets, see `CWDLoss`.

    Args:
        weight: Weight of the term; 3 is TorchDistiller's of CWD, with temperature 4.
        temperature: tau, positive; 4 is TorchDistiller's of CWD.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> spec = NetworkSpec({"decoder": 128, "logits": 19}, num_labels=19)
        >>> loss = create_loss("fakd_cwd", spec, spec, preset="mm_ade", covariance="diagonal")
        >>> loss.weights, loss.temperature, loss.statistics.covariance.shape
        ({'fakd_cwd': 10.0}, 1.0, torch.Size([19, 128]))
    """

    name: ClassVar[str] = "fakd_cwd"
    matches: ClassVar[str] = "`cwd` over augmented features, in closed form"
    presets: ClassVar[Presets] = {"preset": CWD_PRESETS}

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 3.0,
        temperature: float = 4.0,
        lambda0: float = 1.0,
        schedule: Schedule = "cosine",
        tap: str = "decoder",
        covariance: Literal["auto", "full", "diagonal"] = "auto",
    ) -> None:
        super().__init__(
            student,
            teacher,
            weight=weight,
            temperature=temperature,
            lambda0=lambda0,
            schedule=schedule,
            tap=tap,
            covariance=covariance,
        )

    def bound_loss(self, *tensors: Tensor) -> Tensor:
        """See `augmented_channel_wise_divergence`."""
        return augmented_channel_wise_divergence(*tensors, temperature=self.temperature)
