"""`MeanIoU`, `confusion_matrix`: mean IoU and accuracies from one integer confusion matrix over the whole data set."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

NUM_BYTES = 256
MAX_NUM_LABELS = 65535
LabelMaps = Tensor | np.ndarray | Sequence[Tensor | np.ndarray]

_DESCRIPTION = "Mean IoU, mean class accuracy and pixel accuracy from a streaming integer confusion matrix."
_INPUTS = """
Args:
    predictions: Class ids 0..k-1, one map (h, w), a batch (b, h, w), or a sequence of maps of any size.
    references: True class ids of the same shapes, 0..k-1 or `ignore_index`.
"""
_CITATION = """@article{everingham2015pascal,
  title={The Pascal Visual Object Classes Challenge: A Retrospective},
  author={Everingham, Mark and Eslami, S. M. Ali and Van Gool, Luc and Williams, Christopher K. I. and Winn, John
    and Zisserman, Andrew},
  journal={International Journal of Computer Vision}, volume={111}, pages={98--136}, year={2015}
}"""


def confusion_matrix(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int = 255) -> Tensor:
    """Count the pixels of each pair of true and predicted class.

    Args:
        predictions: Class ids 0..k-1, any integer type and shape.
        references: True class ids 0..k-1 or `ignore_index`, same shape and device.
        num_labels: k, at most 65,535; more than 255 take twice the time.
        ignore_index: Label of the pixels to leave out.

    Returns:
        (k, k) int64 on the device of the arguments; rows are the truth, columns the prediction.

    Raises:
        ValueError: If the shapes differ, the type is not integer, or an id is out of range.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), num_labels=2)
        tensor([[1, 1],
                [0, 0]])
    """
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} must have one shape: "
            "bring the logits to the size of the labels before the argmax."
        )
    if predictions.is_floating_point() or references.is_floating_point():
        raise ValueError(
            f"predictions and references must be integer class ids, got {predictions.dtype} and {references.dtype}."
        )
    if not 1 <= num_labels <= MAX_NUM_LABELS:
        raise ValueError(f"num_labels must be 1..{MAX_NUM_LABELS}, got {num_labels}.")
    if num_labels >= NUM_BYTES:
        return _wide_confusion_matrix(predictions, references, num_labels, ignore_index)
    if not 0 <= ignore_index < NUM_BYTES:
        ignored = references == ignore_index
        _check_range("references", references.masked_fill(ignored, 0), num_labels, num_labels)
        references, ignore_index = references.int().masked_fill(ignored, NUM_BYTES - 1), NUM_BYTES - 1
    # All pairs of bytes are counted, and ignored or wrong ones are found in the table afterwards: 4 times faster than
    # masking the ignored pixels first.
    for name, ids in (("references", references), ("predictions", predictions)):
        if ids.dtype != torch.uint8:
            _check_range(name, ids, NUM_BYTES, num_labels)
    pairs = _pairs(references, predictions, NUM_BYTES)
    counts = torch.bincount(pairs, minlength=NUM_BYTES**2).view(NUM_BYTES, NUM_BYTES)
    _raise_beyond("predictions", counts.sum(dim=0), num_labels)
    counts[ignore_index] = 0
    _raise_beyond("references", counts.sum(dim=1), num_labels)
    return counts[:num_labels, :num_labels].clone()


def scores_from_confusion_matrix(matrix: Tensor) -> dict[str, float | int | list[float]]:
    """Scores of a whole data set, all in 0..1.

    With n_ij pixels of class i predicted as j: IoU_i = n_ii / (sum_j n_ij + sum_j n_ji - n_ii) and
    accuracy_i = n_ii / sum_j n_ij. A class that is neither labelled nor predicted anywhere has no IoU (nan) and is
    left out of the mean; one that is predicted but never labelled counts as IoU 0 and has no accuracy.

    Args:
        matrix: (k, k) from `confusion_matrix`, summed over the images.

    Returns:
        `mean_iou`; `mean_accuracy`, the mean of the accuracies of the classes; `overall_accuracy`, the share of
        right pixels; `num_classes_counted`, how many classes the mean IoU is over; `per_category_iou` and
        `per_category_accuracy`, lists of k with nan where undefined. With no pixel at all the means are nan.
    """
    counts = matrix.double().cpu()
    correct, labelled, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    iou = correct / (labelled + predicted - correct)  # 0 / 0 gives nan, as intended
    accuracy = correct / labelled
    return {
        "mean_iou": iou.nanmean().item(),
        "mean_accuracy": accuracy.nanmean().item(),
        "overall_accuracy": (correct.sum() / labelled.sum()).item(),
        "num_classes_counted": int(iou.isfinite().sum()),
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
    }


class MeanIoU(evaluate.Metric):
    """Mean IoU as an `evaluate.Metric` that keeps one (k, k) matrix instead of the predictions.

    Memory does not grow with the number of images, nothing is written to disk, no network is used, and no
    `evaluate.load` is needed. Scores are those of `scores_from_confusion_matrix`.

    Args:
        num_labels: Number of classes k.
        ignore_index: Label of the pixels to leave out.

    Example:
        >>> import torch
        >>> from hf_segkd import MeanIoU
        >>> metric = MeanIoU(num_labels=2)
        >>> metric.add_batch(predictions=torch.tensor([[0, 1, 1]]), references=torch.tensor([[0, 0, 1]]))
        >>> metric.compute()["mean_iou"]
        0.5
    """

    def __init__(self, num_labels: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.confusion_matrix = torch.zeros(num_labels, num_labels, dtype=torch.int64)

    def update(self, predictions: LabelMaps, references: LabelMaps) -> None:
        """Count the pixels of one or more label maps.

        Args:
            predictions: Class ids 0..k-1: one map (h, w), a batch (b, h, w), or a sequence of maps of any size.
            references: True class ids of the same shapes, 0..k-1 or `ignore_index`.

        Raises:
            ValueError: If the shapes differ or an id is out of range; nothing is counted then.
        """
        if isinstance(predictions, Tensor | np.ndarray) and predictions.ndim == 2:
            predictions, references = [predictions], [references]
        if len(predictions) != len(references):
            raise ValueError(f"Got {len(predictions)} predictions for {len(references)} references.")
        # The sum is complete before it is added, so that an error in the last map leaves nothing half counted.
        added = torch.zeros_like(self.confusion_matrix)
        for prediction, reference in zip(predictions, references, strict=True):
            prediction = torch.as_tensor(prediction)
            reference = torch.as_tensor(reference, device=prediction.device)
            added += confusion_matrix(prediction, reference, self.num_labels, self.ignore_index).cpu()
        self.confusion_matrix += added

    def add_batch(self, *, predictions: LabelMaps, references: LabelMaps) -> None:
        """Count the pixels of a batch, as `update` does."""
        self.update(predictions, references)

    def add(self, *, prediction: Tensor | np.ndarray, reference: Tensor | np.ndarray) -> None:
        """Count the pixels of one label map, as `update` does."""
        self.update([prediction], [reference])

    def compute(
        self, *, predictions: LabelMaps | None = None, references: LabelMaps | None = None
    ) -> dict[str, float | int | list[float]]:
        """Scores of all that was added, and of the arguments if given; starts afresh afterwards.

        Args:
            predictions: As in `update`, or None.
            references: As in `update`, or None.

        Returns:
            The scores of `scores_from_confusion_matrix`.

        Raises:
            ValueError: If only one of the two is given, or as in `update`.
        """
        if predictions is not None and references is not None:
            self.update(predictions, references)
        elif predictions is not None or references is not None:
            raise ValueError("compute needs both predictions and references, or neither.")
        scores = scores_from_confusion_matrix(self.confusion_matrix)
        self.reset()
        return scores

    def reset(self) -> None:
        """Forget all that was added."""
        self.confusion_matrix.zero_()

    def _info(self) -> evaluate.MetricInfo:
        pixels = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": pixels, "references": pixels}),
        )

    def _build_data_dir(self) -> str:
        # The base class would create a folder in the user's cache here; there is nothing to put into it.
        return ""


def _wide_confusion_matrix(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    """As `confusion_matrix`, for classes that one byte does not hold."""
    if ignore_index == NUM_BYTES - 1:
        raise ValueError(f"ignore_index 255 is one of {num_labels} classes. The label of no class is 65535 then.")
    references, predictions = (_signed(ids) for ids in (references, predictions))
    ignored = references == ignore_index
    _check_range("references", references.masked_fill(ignored, 0), num_labels, num_labels)
    _check_range("predictions", predictions, num_labels, num_labels)
    # Ignored pixels are a row after those of the classes: faster than taking them out.
    pairs = _pairs(references.masked_fill(ignored, num_labels), predictions, num_labels)
    counts = torch.bincount(pairs, minlength=num_labels * (num_labels + 1)).view(num_labels + 1, num_labels)
    return counts[:num_labels].clone()


def _pairs(references: Tensor, predictions: Tensor, base: int) -> Tensor:
    """Flat pairs, reference * base + prediction, in numbers of 32 bits where they do: these are counted faster."""
    dtype = torch.int32 if base < 2**15 else torch.int64
    return references.to(dtype, copy=True).mul_(base).add_(predictions.to(dtype)).flatten()


def _signed(ids: Tensor) -> Tensor:
    """The ids in a type that PyTorch computes with: of unsigned ones it has only uint8."""
    return ids.int() if ids.dtype in (torch.uint8, torch.uint16, torch.uint32) else ids


def _check_range(name: str, ids: Tensor, limit: int, num_labels: int) -> None:
    """Raise for an id outside 0..limit-1."""
    if ids.numel() == 0:
        return
    low, high = (bound.item() for bound in ids.aminmax())
    if low < 0 or high >= limit:
        raise _out_of_range(name, low if low < 0 else high, num_labels)


def _raise_beyond(name: str, counts: Tensor, num_labels: int) -> None:
    """Raise for pixels of an id that is not one of the classes, from the (256,) counts of all ids."""
    beyond = counts[num_labels:].nonzero()
    if len(beyond):
        raise _out_of_range(name, num_labels + int(beyond[0]), num_labels)


def _out_of_range(name: str, class_id: int, num_labels: int) -> ValueError:
    return ValueError(
        f"{name} hold class id {class_id}, need 0..{num_labels - 1}. Were the labels converted for this data set, and "
        "does the model have as many classes?"
    )
