"""`AugmentedDataset`, `EvaluationDataset`: torch data sets of augmented training crops and of whole images."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .cache_room import announce_cache
from .class_balance import drawn_rows
from .data_cache import DataCache
from .decoding import with_cache
from .image_files import UnreadableImageError
from .image_processors import whole_image
from .labels import IGNORE_INDEX
from .samples import Sample, checked_samples, require_one_size
from .transforms import TrainTransform

if TYPE_CHECKING:  # importing transformers takes longer than all the rest together
    from transformers import BaseImageProcessor

logger = logging.getLogger(__name__)


class AugmentedDataset(Dataset):
    """Training samples which depend on (seed, epoch, index) and on nothing else.

    So a sample is the same bit for bit with any number of workers and processes, and after a resume. All pixels of an
    image without annotation are labelled with the ignored index.

    Args:
        dataset: From `load_segmentation_dataset`; or, without annotations, from `load_unlabelled_images`.
        transform: Turns an image and its annotation into a sample.
        seed: Any integer from 0.
        unlabelled: Images without annotations that each epoch has besides. The epochs go through them in turn, in an
            order drawn anew each time: none comes again before all others came.
        unlabelled_ratio: How many of them an epoch has for each image of `dataset`; above 0.
        bad_images: What to do about a file that cannot be read. "stop": raise, with its name. "skip": take the next row
            that can be read in its place, and log its name once. Labels out of range and the like always stop.
        views: How many crops of each image there are, which come in turn, epoch after epoch; samples then have a
            `crop_ids`, a hash of their pixels. 0 (default): each epoch draws new crops, without a hash.
        data_cache: Folder that keeps decoded images and masks from their first use on (`DataCache`), for the same
            samples. None (default): nowhere.

    Attributes:
        repeat_factors: How often each row of `dataset` is drawn relative to the others, (n,), as `repeat_factors` of
            `class_balance` gives them; an epoch has as many images all the same. None (default) takes each row once.

    Raises:
        ValueError: If the seed is negative, the ratio gives not one image, or images of another origin shall be kept.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: TrainTransform,
        seed: int = 0,
        unlabelled: datasets.Dataset | None = None,
        unlabelled_ratio: float = 1.0,
        bad_images: Literal["stop", "skip"] = "stop",
        views: int = 0,
        data_cache: str | os.PathLike | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative (numpy's generators take none), got {seed}.")
        self.dataset = dataset
        self.unlabelled = unlabelled
        self.unlabelled_per_epoch = 0 if unlabelled is None else round(unlabelled_ratio * len(dataset))
        if unlabelled is not None and (self.unlabelled_per_epoch < 1 or not len(unlabelled)):
            raise ValueError(
                f"With unlabelled_ratio {unlabelled_ratio}, {len(dataset)} labelled and {len(unlabelled)} unlabelled "
                "images an epoch would have no unlabelled image. Raise the ratio, or leave the unlabelled images out."
            )
        self.transform = transform
        self.seed = seed
        self.bad_images = bad_images
        self.views = views
        self.data_cache = None if data_cache is None else DataCache(data_cache)
        self._images, self._unlabelled_images = (
            part if part is None or self.data_cache is None else with_cache(part, self.data_cache)
            for part in (dataset, unlabelled)
        )
        self.repeat_factors: np.ndarray | None = None
        self._drawn: tuple[int, np.ndarray] | None = None  # an epoch and its rows
        # In shared memory, so that set_epoch reaches workers that live across epochs, and what they find reaches us.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # A flag for each row of `dataset`, then of `unlabelled`.
        self.unreadable = torch.zeros(len(dataset) + len(unlabelled or ()), dtype=torch.bool).share_memory_()

    @property
    def has_labels(self) -> bool:
        """Whether the images of `dataset` have annotations."""
        return "annotation" in self.dataset.column_names

    @property
    def num_crops(self) -> int:
        """How many crops there are in all; 0 for endless ones."""
        return self.views * (len(self.dataset) + len(self.unlabelled or ()))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations the following samples get; call it before every epoch."""
        self._epoch.fill_(epoch)

    def announce_cache(self, limit: float | None = None) -> None:
        """Log how much room `data_cache` takes when it is full, as the headers of all images tell.

        Args:
            limit: GiB that it may take; None (default) for all that the disk has.

        Raises:
            ValueError: If the limit is lower, or the disk has less room.
        """
        parts = [part for part in (self.dataset, self.unlabelled) if part is not None]
        announce_cache(self.data_cache, parts, limit)

    def name_of(self, place: int) -> str:
        """`image_id` of an entry of `unreadable`, without reading the image."""
        labelled = place < len(self.dataset)
        images, row = (self.dataset, place) if labelled else (self.unlabelled, place - len(self.dataset))
        return images.select_columns("image_id")[row]["image_id"]

    def __len__(self) -> int:
        return len(self.dataset) + self.unlabelled_per_epoch

    def __getitem__(self, index: int) -> Sample:
        """Sample of a row; those after as many as `dataset` has are unlabelled.

        Returns:
            `pixel_values`, (3, h, w) float32, `labels`, (h, w) int64, and `image_ids`, the image's `image_id`; with
            `views` also `crop_ids`.

        Raises:
            IndexError: If there is no such row, so that iterating ends.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        epoch = int(self._epoch)
        number = index - len(self.dataset)  # among the epoch's unlabelled images
        if number < 0:
            view, place = epoch, self._labelled_row(epoch, index)
            row = self._readable_row(self._images, place, self.unreadable[: len(self.dataset)])
        else:
            view, place = self._unlabelled_row(epoch, number)
            row = self._readable_row(self._unlabelled_images, place, self.unreadable[len(self.dataset) :])
        image = row["image"]
        if "annotation" in row:
            annotation = row["annotation"]
        else:
            ignored = self.transform.ignore_index
            annotation = Image.new("L" if ignored <= IGNORE_INDEX else "I;16", image.size, ignored)
        if not self.views:
            rng = np.random.default_rng((self.seed, epoch, index))
            return {**self.transform(image, annotation, rng), "image_ids": row["image_id"]}
        first = 0 if number < 0 else len(self.dataset)
        rng = np.random.default_rng((self.seed, view % self.views, first + place))
        sample = self.transform(image, annotation, rng)
        pixels = sample["pixel_values"].numpy()
        return {**sample, "image_ids": row["image_id"], "crop_ids": hashlib.blake2b(pixels, digest_size=16).hexdigest()}

    def _readable_row(self, images: datasets.Dataset, place: int, unreadable: Tensor) -> dict[str, Any]:
        """The row, or the next that can be read if bad images are skipped; marks those that cannot."""
        for index in ((place + step) % len(images) for step in range(len(images))):
            if unreadable[index]:
                continue
            try:
                return images[index]
            except UnreadableImageError as error:
                if self.bad_images != "skip":
                    raise UnreadableImageError(f"{error} (bad_images='skip' trains without such files.)") from error
                unreadable[index] = True
                logger.warning(f"Left out of training: {error}")
        raise UnreadableImageError(f"None of {len(images)} images can be read; the warnings before this name them.")

    def _labelled_row(self, epoch: int, index: int) -> int:
        """Row of an epoch's image: itself, or where rare classes come more often the one drawn for it."""
        if self.repeat_factors is None:
            return index
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, drawn_rows(self.repeat_factors, self.seed, epoch)
        return int(self._drawn[1][index])

    def _unlabelled_row(self, epoch: int, number: int) -> tuple[int, int]:
        """Pass and row of an epoch's unlabelled image: the epochs share one endless row of shuffled passes."""
        size = len(self.unlabelled)
        passes, place = divmod(epoch * self.unlabelled_per_epoch + number, size)
        return passes, int(_shuffled(self.seed, passes, size)[place])


class EvaluationDataset(Dataset):
    """Whole images as the model's own processor prepares them, with the labels at their own resolution.

    The processor sees only the image: labels are neither resized nor shifted by its `do_reduce_labels`.

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
        pixel_values = whole_image(self.image_processor, row["image"])
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(np.array(row["annotation"])).long()}


@lru_cache(maxsize=4)  # an epoch mostly lies in one pass or two
def _shuffled(seed: int, passes: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, passes)).permutation(size)


def train_collator(
    samples: Sequence[Sample],
    num_labels: int | None = None,
    ignore_index: int = IGNORE_INDEX,
    num_channels: int | None = None,
) -> dict[str, Tensor | list[str]]:
    """Stack samples of one shape; other entries of the samples are dropped.

    Args:
        samples: `pixel_values`, (3, h, w), and, where there are some, `labels` (or `label`), (h, w), and the words
            `image_ids` and `crop_ids`.
        num_labels: Number of classes of the network; by default labels are not checked.
        ignore_index: The label besides 0 to `num_labels` - 1.
        num_channels: Number of channels that the network takes; by default it is not checked.

    Returns:
        `pixel_values`, (b, 3, h, w), `labels`, (b, h, w), and the lists of words.

    Raises:
        ValueError: If a sample has another type or shape, sizes do not agree, or a label is out of range; it names the
            image as far as its name is known. On a GPU the loss would end in an assertion of the device.
    """
    samples = checked_samples(samples, num_labels, ignore_index, num_channels)
    require_one_size(samples)
    return {key: _stacked([sample[key] for sample in samples]) for key in samples[0]}


def evaluation_collator(
    samples: Sequence[Sample],
    num_labels: int | None = None,
    ignore_index: int = IGNORE_INDEX,
    num_channels: int | None = None,
) -> dict[str, Tensor | list[Tensor] | list[str]]:
    """As `train_collator`, but `pixel_values` or `labels` whose shapes do not agree become a list of tensors."""
    samples = checked_samples(samples, num_labels, ignore_index, num_channels)
    batch: dict[str, Tensor | list[Tensor] | list[str]] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        shapes = {value.shape for value in values if isinstance(value, Tensor)}
        batch[key] = _stacked(values) if len(shapes) == 1 else values
    return batch


def _stacked(values: list[Tensor] | list[str]) -> Tensor | list[str]:
    return values if isinstance(values[0], str) else torch.stack(values)
