"""What FAKD's two forms share: the strength of the augmentation and the class covariances."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hf_segkd.losses.adapters import align, class_labels, pixel_rows
from hf_segkd.losses.base import (
    AbstractDistillationLoss,
    require_choice,
    require_same_num_labels,
    require_weight,
)
from hf_segkd.losses.class_covariance import ClassCovariance
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

    The statistics are those of the map that enters the student's classifier, before dropout, detached,
    updated in training mode alone; the classifier's weight is the live one. `set_progress` moves the strength
    lambda, which is 0 until it is called (except with `constant` and `cosine_decay`).

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term.
        lambda0: Largest strength of the augmentation; 0 gives the plain loss.
        schedule: See `augmentation_strength`.
        tap: The map that enters the student's classifier.
        covariance: `full` or `diagonal`; None takes `full` up to 270 channels.
        label_resize: See `resize_labels`.
        sync_stats: See `ClassCovariance`.

    Raises:
        ValueError: If a tap is missing, the class counts differ, or a value is out of range.
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
    uses_classifier_weight: ClassVar[bool] = True

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float,
        lambda0: float,
        schedule: Schedule,
        tap: str,
        covariance: Literal["full", "diagonal"] | None,
        label_resize: Literal["nearest", "nearest-exact"],
        sync_stats: bool,
    ) -> None:
        super().__init__(
            student,
            teacher,
            student_taps=("logits", tap),
            teacher_taps=("logits",),
            weights={self.name: weight},
        )
        require_same_num_labels(self.name, student, teacher)
        require_weight("lambda0", lambda0)
        require_choice("schedule", schedule, ("cosine", "linear", "quarter_cosine", "constant", "cosine_decay"))
        require_choice("label_resize", label_resize, ("nearest", "nearest-exact"))
        channels = student.channels[tap]
        if covariance is None:
            covariance = "full" if channels <= LARGEST_FULL_COVARIANCE else "diagonal"
        require_choice("covariance", covariance, ("full", "diagonal"))
        self.tap = tap
        self.lambda0 = lambda0
        self.schedule = schedule
        self.label_resize = label_resize
        self.ignore_index = student.ignore_index
        self.statistics = ClassCovariance(student.num_labels, channels, covariance, sync_stats)
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
        labels = class_labels(labels, logits.shape[2:], self.ignore_index, self.label_resize)
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
