"""`StreamingScores`: scores from a confusion matrix of each image, so that neither logits nor masks pile up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.trainer_utils import EvalPrediction
from transformers.utils import logging

from hf_segkd.evaluation.metrics import confusion_matrix, scores_from_confusion_matrix
from hf_segkd.evaluation.reports import METRICS
from hf_segkd.networks.inference import classes_at, logits_at
from hf_segkd.networks.tiles import tiled_logits

logger = logging.get_logger(__name__)

# Most logits of an image that exist at once at the size of its labels, 256 MiB; more are made in parts.
LOGITS_AT_ONCE = 2**26
# Pixels from which a whole image is told to take much memory: gigabytes with most networks.
LARGE_IMAGE = 2**24


class StreamingScores:
    """`compute_metrics` of a `Trainer` with `batch_eval_metrics`: adds up the rows of `loss_and_counts`.

    Args:
        num_labels: Number of classes k.
        class_keys: Class id -> what its IoU is called, for the classes whose IoU is wanted.

    Attributes:
        confusion_matrix: Counts of the last evaluation, (k, k) int64: rows are the truth, columns the prediction;
            empty until it is complete.
    """

    def __init__(self, num_labels: int, class_keys: Mapping[int, str] | None = None) -> None:
        self.num_labels = num_labels
        self.class_keys = class_keys or {}
        self.begin()

    def begin(self) -> None:
        """Forget what was counted."""
        self.confusion_matrix = torch.zeros(0, dtype=torch.int64)
        self._sum = torch.zeros(self.num_labels**2, dtype=torch.int64)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; with the last one `mean_iou`, `mean_accuracy`, `overall_accuracy` and the classes' IoU, 0..1.

        A score that is of no pixel is left out.
        """
        self._sum += torch.as_tensor(prediction.predictions).sum(0).cpu()
        if not compute_result:
            return {}
        self.confusion_matrix = self._sum.reshape(self.num_labels, self.num_labels)
        scores = scores_from_confusion_matrix(self.confusion_matrix)
        found = {name: scores[name] for name in METRICS}
        found |= {key: scores["per_category_iou"][index] for index, key in self.class_keys.items()}
        return {name: score for name, score in found.items() if not math.isnan(score)}

    def require_labels(self, stop: bool = True) -> None:
        """Refuse an evaluation without a score.

        Args:
            stop: Whether to raise; else a warning is logged.

        Raises:
            ValueError: If all images were counted, and not one pixel had a class.
        """
        if not self.confusion_matrix.numel() or self.confusion_matrix.any():
            return
        message = (
            "The evaluation has no score: not one pixel of its images has a class. Is a class taken for none, or are "
            "the masks of another data set?"
        )
        if stop:
            raise ValueError(message)
        logger.warning(message)


def loss_and_counts(
    logits_of: Callable[[Tensor], Tensor],
    images: Any,
    labels: Any,
    num_labels: int,
    ignore_index: int,
    tile: Sequence[int] | None = None,
    overlap: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of a batch of whole images, and the confusion matrix of each.

    Args:
        logits_of: Images (b, 3, hh, ww) -> logits (b, k, h, w).
        images: (b, 3, hh, ww), or a list of (3, hh, ww) where their sizes differ, which go through the network one by
            one.
        labels: A map for each image, of any size: 0..k-1 or `ignore_index`.
        num_labels: k.
        ignore_index: Label of the pixels that are left out.
        tile: Show the network tiles of this side, or height and width, one by one; by default whole images.
        overlap: Pixels that neighbouring tiles have in common; by default a quarter of a tile's side.

    Returns:
        The mean of the images' losses, each the mean over its labelled pixels; and a confusion matrix for each image,
        (b, k * k) int64.
    """

    def scored() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for same_sized, their_labels in _same_sized(images, labels):
            if tile is None:
                _tell_of_large_images(same_sized)
                for logits, label in zip(logits_of(same_sized), their_labels, strict=True):
                    yield *_loss_and_classes(logits[None], label, ignore_index), label
            else:
                for image, label in zip(same_sized, their_labels, strict=True):
                    parts = tiled_logits(logits_of, image[None], tuple(label.shape), tile, overlap)
                    yield *_of_parts(parts, label, ignore_index), label

    losses, matrices = [], []
    for loss, classes, label in scored():
        losses.append(loss / (label != ignore_index).sum().clamp(min=1))
        matrices.append(confusion_matrix(classes, label, num_labels, ignore_index))
    return torch.stack(losses).mean(), torch.stack(matrices).flatten(1)


def _tell_of_large_images(images: Tensor) -> None:
    """Warn once of images (b, c, hh, ww) that a network may lack the memory for, before it sees them."""
    if math.prod(images.shape[-2:]) >= LARGE_IMAGE:
        logger.warning_once(
            f"Images of more than {LARGE_IMAGE / 1e6:.0f} million pixels are shown to the network whole. Where memory "
            "is short, show them in tiles: --eval_tile 1024 of train, distill and compare, --tile 1024 of evaluate and "
            "predict. Scores in tiles are not compared with those of whole images."
        )


def _loss_and_classes(logits: Tensor, label: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of an image's pixels, and their classes (h, w), from its logits (1, k, h4, w4)."""
    size = tuple(label.shape)
    if logits.shape[1] * label.numel() <= LOGITS_AT_ONCE:
        resized = logits_at(logits, size)
        return _cross_entropy(resized[0], label, ignore_index), resized[0].argmax(0)
    parts = tiled_logits(lambda _: logits, logits, size)  # one tile, resized in parts
    return _of_parts(parts, label, ignore_index)[0], classes_at(logits, size)[0]


def _of_parts(parts: Iterator[tuple[slice, slice, Tensor]], label: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """As `_loss_and_classes`, from logits (k, rows, columns) of parts of the image."""
    classes = torch.empty(label.shape, dtype=torch.int64, device=label.device)
    losses = []
    for rows, columns, logits in parts:
        losses.append(_cross_entropy(logits, label[rows, columns], ignore_index))
        classes[rows, columns] = logits.max(0).indices
    return torch.stack(losses).sum(), classes


def _cross_entropy(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(logits[None], label[None], ignore_index=ignore_index, reduction="sum")


def _same_sized(images: Any, labels: Any) -> Iterator[tuple[Tensor, Any]]:
    """The batch as it is when its images have one size, else image by image."""
    if isinstance(images, Tensor):
        yield images, labels
    else:
        for image, label in zip(images, labels, strict=True):
            yield image[None], [label]
