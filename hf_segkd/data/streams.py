"""`TrainingStream`, `EvaluationStream`: as `AugmentedDataset` and `EvaluationDataset`, of data sets without length."""

from __future__ import annotations

import copy
import itertools
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from .account import NUM_SAMPLES, LabelAccount
from .decoding import label_info
from .image_files import UnreadableImageError
from .image_processors import whole_image
from .labels import IGNORE_INDEX, LabelInfo
from .samples import Sample, checked_samples
from .stream_sources import Source, this_worker
from .transforms import TrainTransform

if TYPE_CHECKING:  # importing transformers takes longer than all the rest together
    from transformers import BaseImageProcessor

logger = logging.getLogger(__name__)

MOST_WORKERS = 1024


class TrainingStream(IterableDataset):
    """Training samples of a stream, which depend on its rows, on (seed, pass, place in the stream) and nothing else.

    `for sample in stream` is one pass. Training goes on with the next pass when one is over. The rows are shared by
    workers as `datasets` does it, shard by shard, and among processes one by one: each image is seen by one of them.

    Args:
        source: The images.
        transform: Turns an image and its annotation into a sample; rows that are tensors stay as they are. None where
            all are.
        seed: Any integer from 0.
        unlabelled: Images without labels that are mixed in; the stream ends with that of `source`.
        unlabelled_ratio: How many of them come for each image of `source`; above 0.
        bad_images: As in `AugmentedDataset`; "skip" leaves the row out.

    Raises:
        ValueError: If the seed is negative.
    """

    def __init__(
        self,
        source: Source,
        transform: TrainTransform | None,
        seed: int = 0,
        unlabelled: Source | None = None,
        unlabelled_ratio: float = 1.0,
        bad_images: Literal["stop", "skip"] = "stop",
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative (numpy's generators take none), got {seed}.")
        self.source = source
        self.transform = transform
        self.seed = seed
        self.unlabelled = unlabelled
        self.unlabelled_ratio = unlabelled_ratio
        self.bad_images = bad_images
        self.process, self.processes = 0, 1
        self._endless = False
        scheme = source.reader.scheme
        self._account = None if scheme is None else LabelAccount(scheme.info, None)

    @property
    def name(self) -> str | None:
        """What its labels are called; None for images known to have none."""
        rows, scheme = self.source.rows, self.source.reader.scheme
        if isinstance(rows, datasets.Dataset):
            return label_info(rows).name if "annotation" in rows.column_names else None
        return None if scheme is None or self.source.is_known_to_lack_masks else scheme.info.name

    @property
    def order(self) -> list[str]:
        """Equal where two streams give their images in the same order, as far as `datasets` tells."""
        return [source.order for source in (self.source, self.unlabelled) if source is not None]

    def endless(self, process: int, processes: int) -> TrainingStream:
        """The share of a process, pass after pass."""
        stream = copy.copy(self)
        stream.process, stream.processes, stream._endless = process, processes, True
        return stream

    def __iter__(self) -> Iterator[Sample]:
        """Samples as those of `AugmentedDataset`; images without labels have none where all are without.

        Raises:
            ValueError: If the rows can't be read again and more are needed, or as `RowReader.read`.
        """
        if self.unlabelled is None:
            yield from self._samples(self.source, self._endless)
            return
        others = self._samples(self.unlabelled, True, is_unlabelled=True)
        due = 0
        for number, sample in enumerate(self._samples(self.source, self._endless), start=1):
            yield sample
            while due < int(number * self.unlabelled_ratio):
                other = next(others, None)
                if other is None:
                    raise ValueError("unlabelled_dataset gives no images, or none to one of the workers.")
                yield other
                due += 1

    def _samples(self, source: Source, endless: bool, is_unlabelled: bool = False) -> Iterator[Sample]:
        worker, workers = this_worker()
        count = 0
        for number in itertools.count():
            before, tried, failed = count, 0, 0
            for place, stored in enumerate(source.pass_over(number)):
                is_ours = count % self.processes == self.process
                count += 1
                if is_ours:
                    tried += 1
                    key = (self.seed, number, place * workers + worker, *([1] if is_unlabelled else []))
                    try:
                        yield self._sample(source, stored, key)
                    except UnreadableImageError as error:
                        if self.bad_images != "skip":
                            hint = "(bad_images='skip' trains without such files.)"
                            raise UnreadableImageError(f"{error} {hint}") from error
                        failed += 1
                        logger.warning(f"Left out of training: {error}")
            if 0 < tried == failed:
                raise UnreadableImageError(f"None of {tried} images can be read; the warnings before this name them.")
            if count == before:
                if number == 0:  # a worker without a shard
                    return
                raise ValueError(
                    f"{source.reader.where} gave {count} images and can't be read again, and max_steps asks for more. "
                    "Lower max_steps, or pass a stream that begins anew each time it is iterated."
                )
            if not endless:
                return

    def _sample(self, source: Source, stored: Any, key: tuple[int, ...]) -> Sample:
        row = source.read(stored, f"row {key[2]}")
        if "pixel_values" in row:
            if self.unlabelled is not None:
                raise ValueError(
                    f"{source.reader.where} gives tensors (pixel_values), and images are mixed before they are "
                    "augmented: give pictures, or mix your tensors yourself."
                )
            return row
        if self.transform is None:
            raise ValueError(_no_processor(source.reader.where, " and, where it does not resize, crop_size"))
        annotation = row.get("annotation")
        has_labels = annotation is not None or self.unlabelled is not None or source.reader.has_labels
        if annotation is None:
            ignored = self.transform.ignore_index
            annotation = Image.new("L" if ignored <= IGNORE_INDEX else "I;16", row["image"].size, ignored)
        else:
            self._count(annotation)
        sample = {**self.transform(row["image"], annotation, np.random.default_rng(key)), "image_ids": row["image_id"]}
        return sample if has_labels else {name: value for name, value in sample.items() if name != "labels"}

    def _count(self, annotation: Image.Image) -> None:
        """Count the first masks, and warn of likely mistakes once."""
        if self._account is None or this_worker()[0] or "numbers" not in annotation.info:
            return
        self._account.add(annotation)
        if self._account.num_read == NUM_SAMPLES:
            if os.environ.get("RANK", "0") == "0":
                for suspicion in self._account.suspicions():
                    logger.warning(suspicion)
            self._account = None


class EvaluationStream(IterableDataset):
    """Whole images of a stream as `EvaluationDataset` gives them, each counted once by any number of processes.

    Where processes would get unequal numbers of images, those with fewer give an image without a labelled pixel more,
    which adds nothing to the counts.

    Args:
        source: The images, with labels.
        image_processor: A Hugging Face image processor; rows that are tensors stay as they are. None where all are.
        labels: The classes.
        split: What reports call the images.
        ignore_index: Label of the pixels that are left out.

    Attributes:
        labels: The classes.
        split: What reports call the images.
    """

    def __init__(
        self,
        source: Source,
        image_processor: BaseImageProcessor | None,
        labels: LabelInfo,
        split: str,
        ignore_index: int,
    ) -> None:
        self.source = source
        self.image_processor = image_processor
        self.labels = labels
        self.split = split
        self.ignore_index = ignore_index
        self.process, self.processes = 0, 1
        # In shared memory, where each worker leaves the number of images that it read in its last pass.
        self._counts = torch.zeros(MOST_WORKERS, dtype=torch.int64).share_memory_()

    @property
    def order(self) -> list[str]:
        """As that of a `TrainingStream`."""
        return [self.source.order]

    @property
    def num_images(self) -> int:
        """Number of images in the last pass, of all processes; 0 before the first."""
        return int(self._counts.sum())

    @property
    def num_given(self) -> int:
        """As `num_images`, with those that were added so that all processes have equally many."""
        return int((self._counts.div(self.processes).ceil() * self.processes).sum())

    def share(self, process: int, processes: int) -> EvaluationStream:
        """The share of a process."""
        stream = copy.copy(self)
        stream.process, stream.processes = process, processes
        stream._counts = torch.zeros_like(self._counts).share_memory_()
        return stream

    def first(self, number: int) -> list[Sample]:
        """The first samples."""
        rows = itertools.islice(self.source.pass_over(0), number)
        samples = [self._sample(stored, place) for place, stored in enumerate(rows)]
        return checked_samples(samples, None, self.ignore_index, None)

    def __iter__(self) -> Iterator[Sample]:
        """Samples as those of `EvaluationDataset`."""
        count, first = 0, None
        for stored in self.source.pass_over(0):
            first = stored if first is None else first
            if count % self.processes == self.process:
                yield self._sample(stored, count)
            count += 1
        self._counts[this_worker()[0]] = count
        if 0 < count % self.processes <= self.process:
            sample = self._sample(first, 0)
            labels = torch.as_tensor(sample["labels"] if "labels" in sample else sample["label"]).long()
            yield {**sample, "labels": torch.full_like(labels, self.ignore_index)}

    def _sample(self, stored: Any, place: int) -> dict[str, Tensor | str]:
        row = self.source.read(stored, f"row {place}")
        if "pixel_values" in row:
            return row
        if "annotation" not in row:
            raise ValueError(
                f"An evaluation needs labels, and {self.source.reader.where} gives none for {row['image_id']}. Name "
                "the column of the masks as mask_column; scripts/predict.py needs none."
            )
        if self.image_processor is None:
            raise ValueError(_no_processor(self.source.reader.where))
        pixel_values = whole_image(self.image_processor, row["image"])
        return {"pixel_values": pixel_values, "labels": torch.from_numpy(np.array(row["annotation"])).long()}


def _no_processor(where: str, more: str = "") -> str:
    return f"{where} gives images, and how they become pixel_values is not known: pass processing_class{more}."
