"""`LabelLoss`: the base of the losses on the labels; also how pixels are weighed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hf_segkd.losses.base import require_weight
from hf_segkd.types import Paper


@dataclass(frozen=True, kw_only=True)
class LabelLoss(ABC):
    """Base of the losses that compare logits with labels: a formula with its options.

    Args:
        weight: Weight of the term in the sum that is minimised.

    Attributes:
        name: Name of the term, and what `label_loss` calls it.
        paper: The publication; None for the cross-entropy.
        averages_pixels: Whether it is a mean over the labelled pixels, weighted by `class_weights`. The trainer then
            makes it the mean over all pixels of an optimizer step; the others are means over batches.
        uses_class_weights: Whether `class_weights` change it.

    Raises:
        ValueError: If the weight is negative, or an option of the subclass is out of range.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    averages_pixels: ClassVar[bool] = False
    uses_class_weights: ClassVar[bool] = False

    weight: float = 1.0

    def __post_init__(self) -> None:
        require_weight(f"The weight of {self.name}", self.weight)

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
        """The unweighted term.

        Args:
            logits: (b, k, hh, ww), float32 or float64, of the labels' size.
            labels: Class of each pixel, (b, hh, ww) int64, 0..k-1 or `ignore_index`.
            ignore_index: Label of the pixels to leave out.
            class_weights: (k,), in the number format of the logits; None weighs all classes alike.

        Returns:
            A scalar; 0 with a graph where no pixel is labelled.
        """


def pixel_weights(labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
    """Weight of each pixel: that of its class, 0 where it has none.

    Args:
        labels: (b, hh, ww) int64.
        ignore_index: Label of the pixels without a class.
        class_weights: (k,); with None each labelled pixel weighs 1.

    Returns:
        (b, hh, ww), in the format of `class_weights`, or bool without them.
    """
    labelled = labels != ignore_index
    if class_weights is None:
        return labelled
    return class_weights[labels.where(labelled, 0)] * labelled


def not_zero(total: Tensor) -> Tensor:
    """A divisor: `total`, or 1 where it is 0, which is where there is nothing to divide."""
    return total + (total == 0)
