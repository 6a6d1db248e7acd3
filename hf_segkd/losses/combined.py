"""`CombinedLoss`: several distillation losses as one, as the papers combine them: `--method cwd,kd`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from torch import Tensor, nn
from transformers.utils import logging

from hf_segkd.losses.base import AbstractDistillationLoss, TrainingRequest
from hf_segkd.types import Features, NetworkSpec

logger = logging.get_logger(__name__)

# KD on the logits, as it is called in the methods that have it.
KD_TERMS = ("kd", "cirkd_kd", "skds_pixel")


class CombinedLoss(AbstractDistillationLoss):
    """The terms of several losses side by side, each with its own weight.

    KD on the logits, which `cirkd` and `skds` have too, counts as often as the losses have it, with a warning.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        losses: At least two, of different methods.

    Raises:
        ValueError: If two have a term of the same name, or they want different things of the trainer: connectors
            trained first, or a cross-entropy divided by the batch size.
    """

    def __init__(self, student: NetworkSpec, teacher: NetworkSpec, losses: Sequence[AbstractDistillationLoss]) -> None:
        names, request = [loss.name for loss in losses], _common_request(losses)
        terms = [term for loss in losses for term in loss.weights]
        if len(set(terms)) < len(terms):
            raise ValueError(f"{', '.join(names)} can't be combined: their terms {terms} must have different names.")
        super().__init__(
            student,
            teacher,
            student_taps=_union(loss.student_taps for loss in losses),
            teacher_taps=_union(loss.teacher_taps for loss in losses),
            weights={term: weight for loss in losses for term, weight in loss.weights.items()},
        )
        self.name = ",".join(names)
        self.request = request
        repeated = [
            f"{term} (weight {weight:g})" for term, weight in self.weights.items() if term in KD_TERMS and weight
        ]
        if len(repeated) > 1:
            logger.warning(
                f"{self.name} applies KD on the logits {len(repeated)} times: {' and '.join(repeated)}. Unless that is "
                "meant, leave kd out, or give the term the weight 0 (kd_weight of cirkd, weight of skds)."
            )
        self.losses = nn.ModuleList(losses)
        self.needs_labels = any(loss.needs_labels for loss in losses)
        self.couples_images = any(loss.couples_images for loss in losses)
        self.uses_classifier_weight = any(loss.uses_classifier_weight for loss in losses)

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """The terms of all losses."""
        return {name: value for loss in self.losses for name, value in loss.terms(student, teacher, labels).items()}

    def connector_parameters(self) -> Iterator[nn.Parameter]:
        """The connectors of all losses."""
        return (parameter for loss in self.losses for parameter in loss.connector_parameters())

    def finished_parameters(self) -> Iterator[nn.Parameter]:
        """The finished parameters of all losses."""
        return (parameter for loss in self.losses for parameter in loss.finished_parameters())

    def set_progress(self, progress: float) -> None:
        """See the base class."""
        for loss in self.losses:
            loss.set_progress(progress)


def _common_request(losses: Sequence[AbstractDistillationLoss]) -> TrainingRequest:
    """The requirements of all losses; None for the teacher's batch norms where they differ: the user must decide."""
    requests = [asdict(loss.request) for loss in losses]
    common = {}
    for setting, value in requests[0].items():
        if all(request[setting] == value for request in requests):
            common[setting] = value
        elif setting == "teacher_batch_statistics":
            common[setting] = None
        else:
            values = {loss.name: request[setting] for loss, request in zip(losses, requests, strict=True)}
            raise ValueError(
                f"{', '.join(values)} can't be combined: {setting} is one for all, but got {values}. Set it alike in "
                "the arguments of each, or leave a preset that sets it."
            )
    return TrainingRequest(**common)


def _union(taps: Iterator[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tap for names in taps for tap in names))
