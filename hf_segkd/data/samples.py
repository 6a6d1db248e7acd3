"""`checked_samples`: the samples of a batch, checked before they are stacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .rows import rows_are_dicts

Sample = dict[str, Tensor | str]

# What a data set of tensors may call its labels by mistake; without labels it would train on the teacher alone.
OTHER_NAMES = ("mask", "masks", "annotation", "annotations", "segmentation", "semantic_segmentation", "mask_labels")


def checked_samples(
    samples: Sequence[Any], num_labels: int | None, ignore_index: int, num_channels: int | None
) -> list[Sample]:
    """The known entries: `pixel_values`, `labels`, `image_ids`, `crop_ids`; arguments as in `train_collator`.

    Raises:
        ValueError: As `train_collator`, but for sizes that differ.
    """
    checked = [_taken(sample, num_channels) for sample in samples]
    if len({frozenset(sample) for sample in checked}) > 1:
        raise ValueError(
            f"The samples of a batch hold different things: {' and '.join(sorted({str(sorted(s)) for s in checked}))}. "
            f"Give images without labels labels of {ignore_index} all over."
        )
    if num_labels is not None:
        for sample in checked:
            _check_range(sample, num_labels, ignore_index)
    return checked


def require_one_size(samples: Sequence[Sample]) -> None:
    """Make sure that all images of a training batch, and the labels, have one size.

    Raises:
        ValueError: If not; it tells both sizes.
    """
    for sample in samples:
        image = tuple(sample["pixel_values"].shape[1:])
        if "labels" in sample and tuple(sample["labels"].shape) != image:
            raise ValueError(
                f"{_name(sample)}: labels are {_size(sample['labels'])} and pixel_values "
                f"{_size(sample['pixel_values'])} (height x width). In training both have the size of the crop; "
                "resize the labels too, by nearest neighbour."
            )
        if sample["pixel_values"].shape != samples[0]["pixel_values"].shape:
            raise ValueError(
                f"{_name(sample)}: pixel_values are {tuple(sample['pixel_values'].shape)}, and those of another image "
                f"of the batch {tuple(samples[0]['pixel_values'].shape)}. Crop or resize all training images to one "
                "size."
            )


def _taken(sample: Any, num_channels: int | None) -> Sample:
    """The known entries of a sample, as tensors of the right kind."""
    if not isinstance(sample, Mapping):
        raise ValueError(rows_are_dicts("The data set", sample))
    if "pixel_values" not in sample:
        raise ValueError(
            f"A sample has no pixel_values, (3, h, w) float32; it has {', '.join(map(str, sample))}. The data set "
            "gives tensors, or images with masks in all its rows."
        )
    labels = sample["labels"] if "labels" in sample else sample.get("label")
    if labels is None and (misnamed := [name for name in OTHER_NAMES if name in sample]):
        raise ValueError(
            f"{_name(sample)} has pixel_values and no labels, but {', '.join(misnamed)}. Are these the labels? Call "
            "them labels, (h, w) integers, or leave them out."
        )
    taken: Sample = {"pixel_values": _tensor(sample["pixel_values"])}
    if labels is not None:
        taken["labels"] = _tensor(labels)
    taken |= {name: str(sample[name]) for name in ("image_ids", "crop_ids") if name in sample}
    _check_kinds(taken, num_channels)
    if labels is not None and taken["labels"].dtype != torch.uint8:  # which losses take too
        taken["labels"] = taken["labels"].long()
    return taken


def _check_kinds(sample: Sample, num_channels: int | None) -> None:
    image, labels = sample["pixel_values"], sample.get("labels")
    channels = 3 if num_channels is None else num_channels
    if image.dtype != torch.float32 or image.ndim != 3 or (num_channels and image.shape[0] != num_channels):
        raise ValueError(
            f"{_name(sample)}: pixel_values are {_kind(image)}, need float32 of ({channels}, h, w): normalised as the "
            "image processor does it, channels first, without an axis for the batch."
        )
    if labels is not None and (labels.ndim != 2 or labels.is_floating_point() or labels.is_complex()):
        raise ValueError(
            f"{_name(sample)}: labels are {_kind(labels)}, need integers of (h, w): one class id for each pixel."
        )


def _check_range(sample: Sample, num_labels: int, ignore_index: int) -> None:
    """Raise for the labels of a data set that does not check them itself."""
    labels = sample.get("labels")
    if labels is None:
        return
    wrong = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)]
    if len(wrong):
        raise ValueError(
            f"{_name(sample)}: label out of range: {int(wrong[0])}; the network has {num_labels} classes, 0 to "
            f"{num_labels - 1}, and ignores {ignore_index}. Are these Cityscapes' labelIds instead of trainIds, do the "
            "ids start at 1 (reduce_labels), or has the network too few labels?"
        )


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _name(sample: Mapping[str, Any]) -> str:
    return str(sample.get("image_ids", "An image (its data set gives no image_ids)"))


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} of {tuple(value.shape)}"


def _size(value: Tensor) -> str:
    return " x ".join(map(str, value.shape[-2:]))
