"""`AbstractDistillationLoss`: the base of every distillation loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_segkd.suggestions import did_you_mean
from hf_segkd.types import Features, NetworkSpec, Paper

logger = logging.get_logger(__name__)

# What networks lack whose context module ends in the decoder's map, such as PSPNet and ISANet.
ENCODER_TAPS = ("encoder", "encoder_pre")

# Argument -> its values -> the arguments that a value sets.
Presets = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class TrainingRequest:
    """What a loss asks of the training around it; the defaults ask for nothing. The trainer obeys it.

    Args:
        connector_epochs: In the first so many epochs only the loss's `connector_parameters()` learn, and afterwards
            everything but its `finished_parameters()`; 0 trains everything throughout.
        divide_by_batch: Whether the terms are divided by the number of images, as in code that divides its
            cross-entropy by it; the trainer then divides its cross-entropy, too.
        teacher_batch_statistics: Whether the teacher's batch norms should normalise by the statistics of each batch
            instead of their running ones, which stay as they are; None where several methods differ. The trainer's
            argument `teacher_batch_norm` wins over it.

    Raises:
        ValueError: If `connector_epochs` is not a whole number from 0.
    """

    connector_epochs: int = 0
    divide_by_batch: bool = False
    teacher_batch_statistics: bool | None = False

    def __post_init__(self) -> None:
        require_whole("connector_epochs", self.connector_epochs)


class AbstractDistillationLoss(nn.Module, ABC):
    """Base of all losses: picks the features, computes in fp32 without autocast, weighs each term.

    A subclass sets the class attributes, passes features and weights to this constructor and implements `terms`.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        student_taps: Names of the student's features that are read.
        teacher_taps: Names of the teacher's features that are read.
        weights: Weight of each term that `terms` returns; not negative.

    Attributes:
        name: What `--method` and `create_loss` call it.
        paper: The publication; None (default) for a loss that has none.
        matches: What of the teacher it matches, in a few words.
        needs_labels: Whether the terms depend on the labels, with the options given: then the loss has nothing to say
            of unlabelled images.
        couples_images: Whether what the loss says of an image depends on the other images of its batch, with the
            default options: then a step depends on how its images are divided among batches and processes.
        uses_classifier_weight: Whether `student["classifier_weight"]`, the weight (k, c, 1, 1) or (k, c) of the
            student's last convolution, is wanted among the student's features, with its gradient.
        presets: The arguments that a value of an argument sets; `create_loss` fills them in where they are not given.
            The argument `preset` is for that only, another one is the constructor's, too.
        request: What the loss asks of the training around it.

    Raises:
        ValueError: If a feature is missing or a weight is negative.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    matches: ClassVar[str]
    needs_labels: ClassVar[bool] = False
    couples_images: ClassVar[bool] = False
    uses_classifier_weight: ClassVar[bool] = False
    presets: ClassVar[Presets] = {}

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        student_taps: tuple[str, ...],
        teacher_taps: tuple[str, ...],
        weights: dict[str, float],
    ) -> None:
        super().__init__()
        for side, spec, taps in (("student", student, student_taps), ("teacher", teacher, teacher_taps)):
            missing = [tap for tap in taps if tap not in list(spec.channels)]  # a list also takes unhashable values
            if missing:
                raise ValueError(
                    f"{self.name} reads the {side}'s {missing}, but that network offers "
                    f"{sorted(spec.channels)}. Choose other taps with method_kwargs, or another network; of a teacher "
                    "that is not of hf_segkd name more with hf_segkd.FeatureNetwork(teacher, taps={...}), or, if it is "
                    "not of transformers either, with hf_segkd.LogitsNetwork(teacher, taps={...})."
                )
        for term, weight in weights.items():
            require_weight(f"The weight of {term}", weight)
        self.student_taps = student_taps
        self.teacher_taps = teacher_taps
        self.weights = weights
        self.request = TrainingRequest()

    def forward(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """Weighted terms of the distillation loss.

        Args:
            student: Feature name -> student feature, with gradient.
            teacher: Feature name -> teacher feature; gradients never reach it.
            labels: Class of each pixel, (b, hh, ww) int64 at the resolution of the image.

        Returns:
            Term name -> scalar, already multiplied by its weight. The trainer adds them to the cross-entropy.
        """
        return weighted(self.unweighted(student, teacher, labels), self.weights)

    def unweighted(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """The same terms before they are weighted, as the log has them; same arguments as `forward`."""
        student_names = self.student_taps + (("classifier_weight",) if self.uses_classifier_weight else ())
        with torch.autocast(device_type=labels.device.type, enabled=False):
            return self.terms(
                {name: at_least_float32(student[name]) for name in student_names},
                {name: at_least_float32(teacher[name].detach()) for name in self.teacher_taps},
                labels,
            )

    @abstractmethod
    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """Unweighted terms, from the fp32 (or fp64) features the loss asked for."""

    def connector_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that learn in the first `connector_epochs`; all of the loss's own unless overridden."""
        return self.parameters()

    def finished_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that stop learning after the first `connector_epochs`; none unless overridden."""
        return iter(())

    def set_progress(self, progress: float) -> None:
        """Set the fraction (0 to 1) of training that has passed; called before each optimizer step."""


def weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Each term times its weight."""
    return {name: weights[name] * value for name, value in terms.items()}


def usual_taps(name: str, taps: tuple[str, ...], student: NetworkSpec, teacher: NetworkSpec) -> tuple[str, ...]:
    """Published features, without the encoder's where a network has no encoder of its own; a warning says so.

    Args:
        name: The method, for the warning.
        taps: The features of its paper or code.
        student: What the student offers.
        teacher: What the teacher offers.
    """
    offered = student.channels.keys() & teacher.channels.keys()
    kept = tuple(tap for tap in taps if tap in offered or tap not in ENCODER_TAPS)
    if kept != taps:
        logger.warning(
            f"{name} compares only {', '.join(kept)}: not both networks have an encoder apart from the decoder, so "
            f"{', '.join(tap for tap in taps if tap not in kept)} is left out."
        )
    return kept


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself in fp32 or fp64, otherwise as fp32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def require_same_num_labels(name: str, student: NetworkSpec, teacher: NetworkSpec) -> None:
    """Refuse networks with different class lists, for the losses that compare logits class by class.

    Raises:
        ValueError: If the two numbers of classes differ.
    """
    if student.num_labels != teacher.num_labels:
        raise ValueError(
            f"{name} compares logits class by class, but the student has {student.num_labels} classes and "
            f"the teacher {teacher.num_labels}. Map the teacher's classes to the student's first, or choose a "
            "method that compares features."
        )


def require_weight(argument: str, value: float) -> None:
    """Refuse values below zero.

    Raises:
        ValueError: If `value` is not 0 or more.
    """
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{argument} is {value!r}; it must be 0 or more, and finite.")


def require_positive(argument: str, value: float) -> None:
    """Refuse values of zero or less.

    Raises:
        ValueError: If `value` is not positive.
    """
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{argument} is {value!r}; it must be positive, and finite.")


def require_whole(argument: str, value: int, minimum: int = 0) -> None:
    """Refuse fractions and values below the minimum.

    Raises:
        ValueError: If `value` is not `minimum`, `minimum` + 1, ...
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{argument} must be a whole number from {minimum}, got {value!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among the choices.

    Raises:
        ValueError: If `value` is none of `choices`.
    """
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(map(repr, choices))}.{hint}")
