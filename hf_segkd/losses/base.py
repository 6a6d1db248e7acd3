"""What every distillation loss has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_segkd.types import Features, Paper


class AbstractDistillationLoss(nn.Module, ABC):
    """Base of all losses: picks the taps, computes in fp32 without autocast, weighs each term.

    A subclass sets the class attributes, sets `weights` and the taps in its `__init__`, and implements `terms`.

    Attributes:
        name: What `--method` and `create_loss` call it.
        paper: The publication.
        uses_classifier_weight: Whether `student["classifier_weight"]`, the (k, c, 1, 1) weight of the student's
            last convolution, is wanted among the student's features.
        student_taps: Names of the student's features that are read.
        teacher_taps: Names of the teacher's features that are read.
        weights: Weight of each term that `terms` returns.
        connector_epochs: In the first so many epochs only the loss's own parameters learn, and afterwards only
            the student; 0 (default) trains both throughout. The trainer obeys it.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    uses_classifier_weight: ClassVar[bool] = False

    student_taps: tuple[str, ...]
    teacher_taps: tuple[str, ...]
    weights: dict[str, float]
    connector_epochs: int = 0

    def forward(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """Weighted terms of the distillation loss.

        Args:
            student: Tap name -> student feature, with gradient.
            teacher: Tap name -> teacher feature; gradients never reach it.
            labels: Class of each pixel, (b, hh, ww) int64 at the resolution of the image.

        Returns:
            Term name -> scalar, already multiplied by its weight. The trainer adds them to the cross-entropy.
        """
        student_names = self.student_taps + (("classifier_weight",) if self.uses_classifier_weight else ())
        with torch.autocast(device_type=labels.device.type, enabled=False):
            terms = self.terms(
                {name: at_least_float32(student[name]) for name in student_names},
                {name: at_least_float32(teacher[name].detach()) for name in self.teacher_taps},
                labels,
            )
        return {name: self.weights[name] * value for name, value in terms.items()}

    @abstractmethod
    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms, from fp32 (or fp64) features of the taps the loss asked for."""

    def set_progress(self, progress: float) -> None:  # noqa: B027  most losses have no schedule
        """Tell the loss which fraction (0 to 1) of training has passed; called before each optimizer step."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself in fp32 or fp64, otherwise as fp32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
