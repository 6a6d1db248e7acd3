"""Loss and scores of an evaluation from a confusion matrix of each image, so that neither logits nor masks pile up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.trainer_utils import EvalPrediction

from hf_segkd.evaluation.metrics import confusion_matrix, scores_from_confusion_matrix
from hf_segkd.networks.inference import logits_at


class StreamingScores:
    """`compute_metrics` of a `Trainer` with `batch_eval_metrics`: adds up the rows of `loss_and_counts`.

    Args:
        num_labels: Number of classes k.

    Attributes:
        confusion_matrix: Counts of the last evaluation, (k, k) int64: rows are the truth, columns the prediction;
            empty until it has come to its end.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.begin()

    def begin(self) -> None:
        """Forget what was counted."""
        self.confusion_matrix = torch.zeros(0, dtype=torch.int64)
        self._sum = torch.zeros(self.num_labels**2, dtype=torch.int64)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; with the last one `mean_iou`, `mean_accuracy` and `overall_accuracy`, 0..1."""
        self._sum += torch.as_tensor(prediction.predictions).sum(0).cpu()
        if not compute_result:
            return {}
        self.confusion_matrix = self._sum.reshape(self.num_labels, self.num_labels)
        scores = scores_from_confusion_matrix(self.confusion_matrix)
        return {name: scores[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}


def loss_and_counts(
    logits_of: Callable[[Tensor], Tensor], images: Any, labels: Any, num_labels: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of a batch of whole images, and what a network takes their pixels for.

    Args:
        logits_of: Images (b, 3, hh, ww) -> logits (b, k, h, w).
        images: (b, 3, hh, ww), or a list of (3, hh, ww) where their sizes differ, which go through the network one by
            one.
        labels: A map for each image, of any size: 0..k-1 or `ignore_index`.
        num_labels: k.
        ignore_index: Label of the pixels that are left out.

    Returns:
        The mean of the images' losses, each the mean over its labelled pixels; and a confusion matrix for each image,
        (b, k * k) int64.
    """
    losses, matrices = [], []
    for same_sized, their_labels in _same_sized(images, labels):
        for logits, label in zip(logits_of(same_sized), their_labels, strict=True):
            resized = logits_at(logits[None], label.shape)
            valid = (label != ignore_index).sum().clamp(min=1)
            losses.append(F.cross_entropy(resized, label[None], ignore_index=ignore_index, reduction="sum") / valid)
            matrices.append(confusion_matrix(resized[0].argmax(0), label, num_labels, ignore_index))
    return torch.stack(losses).mean(), torch.stack(matrices).flatten(1)


def _same_sized(images: Any, labels: Any) -> Iterator[tuple[Tensor, Any]]:
    """The batch as it is when its images have one size, else image by image."""
    if isinstance(images, Tensor):
        yield images, labels
    else:
        for image, label in zip(images, labels, strict=True):
            yield image[None], [label]
