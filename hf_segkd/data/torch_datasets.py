"""Torch data sets over the Hugging Face ones: augmented for training, whole images for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .transforms import TrainTransform

if TYPE_CHECKING:  # importing transformers takes longer than all the rest together
    from transformers import BaseImageProcessor

Sample = dict[str, Tensor | str]


class AugmentedDataset(Dataset):
    """Training samples whose augmentation depends on (seed, epoch, index) and on nothing else.

    So a sample is the same bit for bit with any number of workers and processes, and after a resume.

    Args:
        dataset: From `load_segmentation_dataset`.
        transform: Turns an image and its annotation into a sample.
        seed: Any integer from 0.
    """

    def __init__(self, dataset: datasets.Dataset, transform: TrainTransform, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative (numpy's generators take none), got {seed}.")
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        # In shared memory, so that set_epoch reaches workers that live across epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations the following samples get; call it before every epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Sample of a row.

        Returns:
            `pixel_values`, (3, h, w) float32, `labels`, (h, w) int64, and `image_ids`, the image's `image_id`.
        """
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        row = self.dataset[index]
        return {**self.transform(row["image"], row["annotation"], rng), "image_ids": row["image_id"]}


class EvaluationDataset(Dataset):
    """Whole images as the model's own processor prepares them, with the labels at their own resolution.

    The processor sees the image alone: labels are neither resized nor shifted by its `do_reduce_labels`.

    Args:
        dataset: From `load_segmentation_dataset`.
        image_processor: A Hugging Face image processor, e.g. `SegformerImageProcessor`.
    """

    def __init__(self, dataset: datasets.Dataset, image_processor: BaseImageProcessor) -> None:
        self.dataset = dataset
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Sample of a row.

        Returns:
            `pixel_values`, (3, h, w) float32 at the size the processor gives, and `labels`, (hh, ww) int64 at the
            size of the annotation.
        """
        row = self.dataset[index]
        pixel_values = self.image_processor(images=row["image"], return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(np.array(row["annotation"])).long()}


def train_collator(samples: Sequence[Sample]) -> dict[str, Tensor | list[str]]:
    """Stack samples of one shape: `pixel_values`, (b, 3, h, w), and `labels`, (b, h, w); `image_ids` become a list."""
    return {key: _stacked([sample[key] for sample in samples]) for key in samples[0]}


def evaluation_collator(samples: Sequence[Sample]) -> dict[str, Tensor | list[Tensor] | list[str]]:
    """Stack `pixel_values`, and likewise `labels`, where all shapes agree; otherwise a list of tensors."""
    batch: dict[str, Tensor | list[Tensor] | list[str]] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        shapes = {value.shape for value in values if isinstance(value, Tensor)}
        batch[key] = _stacked(values) if len(shapes) == 1 else values
    return batch


def _stacked(values: list[Tensor] | list[str]) -> Tensor | list[str]:
    return torch.stack(values) if isinstance(values[0], Tensor) else values
