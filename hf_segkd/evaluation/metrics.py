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
PIXELS_AT_ONCE = 2**16  # a few maps of so many fit into a processor's cache
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
        num_labels: k, at most 65,535.
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
    if ignore_index == NUM_BYTES - 1 and num_labels >= NUM_BYTES:
        raise ValueError(f"ignore_index 255 is one of {num_labels} classes. The label of no class is 65535 then.")
    count = _count_on_cpu if references.device.type == "cpu" else _count_on_device
    return count(predictions.flatten(), references.flatten(), num_labels, ignore_index)


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
        if isinstance(predictions, Tensor | np.ndarray) and isinstance(references, Tensor | np.ndarray):
            predictions, references = [predictions], [references]  # a whole batch at once
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


def _count_on_device(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    """`confusion_matrix` of flat maps, in a few operations for all pixels at once."""
    references, predictions = references.long(), predictions.long()
    ignored = references == ignore_index
    for name, ids in (("references", references.masked_fill(ignored, 0)), ("predictions", predictions)):
        low, high = (int(bound) for bound in ids.aminmax()) if len(ids) else (0, 0)
        if low < 0 or high >= num_labels:
            raise _out_of_range(name, low if low < 0 else high, num_labels)
    # Ignored pixels are a row after those of the classes: faster than taking them out.
    pairs = references.masked_fill(ignored, num_labels).mul_(num_labels).add_(predictions)
    counts = torch.bincount(pairs, minlength=num_labels * (num_labels + 1)).view(num_labels + 1, num_labels)
    return counts[:num_labels].clone()


def _count_on_cpu(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    """`confusion_matrix` of flat maps, 2 to 3 times as fast as `_count_on_device` on a CPU.

    It takes as many pixels at once as fit into the cache, and NumPy for what PyTorch does slowly in int64. Labels that
    are no class are counted like all others, in rows of their own, and looked at afterwards.
    """
    # A row for each label that a byte holds, or else one for all labels that are no class.
    rows = NUM_BYTES if num_labels < NUM_BYTES and 0 <= ignore_index < NUM_BYTES else num_labels + 1
    ignores_class = 0 <= ignore_index < num_labels
    counts = torch.zeros(rows * num_labels, dtype=torch.int32 if len(references) < 2**31 else torch.int64)
    ones = counts.new_ones(PIXELS_AT_ONCE)
    ignored = 0  # pixels in the row of those that are no class
    for start in range(0, len(references), PIXELS_AT_ONCE):
        true, predicted = (_signed(ids[start : start + PIXELS_AT_ONCE].numpy()) for ids in (references, predictions))
        _require_below(num_labels, predicted, "predictions", num_labels)
        if rows == NUM_BYTES:
            _require_below(NUM_BYTES, true, "references", num_labels)
        else:
            ignored += 0 if ignores_class else np.count_nonzero(true == ignore_index)
            true = np.minimum(_unsigned(true), num_labels).view(true.dtype)
        pairs = true * num_labels if len(counts) < 2**31 else true * np.int64(num_labels)
        pairs += predicted.astype(pairs.dtype, copy=False)
        if pairs.dtype == np.int32 and len(counts) < PIXELS_AT_ONCE / 4:
            counts += torch.bincount(torch.from_numpy(pairs), minlength=len(counts))
        else:
            counts.scatter_add_(0, torch.from_numpy(pairs).long(), ones[: len(pairs)])
    counts = counts.view(rows, num_labels)
    if ignores_class or rows == NUM_BYTES:
        counts[ignore_index] = 0
    if counts[num_labels:].sum() != ignored:
        ids = torch.from_numpy(_signed(references.numpy()))
        wrong = ids[(ids != ignore_index) & ((ids < 0) | (ids >= num_labels))]
        raise _out_of_range("references", int(wrong[0]), num_labels)
    return counts[:num_labels].long()


def _signed(ids: np.ndarray) -> np.ndarray:
    """As int32, or as int64 where that does not hold them."""
    if ids.itemsize < 4:
        return ids.astype(np.int32)
    return ids if ids.dtype == np.int32 else ids.astype(np.int64, copy=False)


def _unsigned(ids: np.ndarray) -> np.ndarray:
    """The same bits as numbers without sign: a negative one is then larger than all class ids."""
    return ids.view(f"u{ids.itemsize}")


def _require_below(limit: int, ids: np.ndarray, name: str, num_labels: int) -> None:
    """Raise for an id outside 0..limit-1."""
    largest = _unsigned(ids).max()
    if largest >= limit:
        raise _out_of_range(name, int(largest.astype(ids.dtype)), num_labels)


def _out_of_range(name: str, class_id: int, num_labels: int) -> ValueError:
    return ValueError(
        f"{name} hold class id {class_id}, need 0..{num_labels - 1}. Were the labels converted for this data set, and "
        "does the model have as many classes?"
    )
