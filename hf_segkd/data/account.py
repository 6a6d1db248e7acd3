"""`check_dataset`, `count_labels`: count the labels of a data set, and warn of likely mistakes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import Any, Literal

import datasets
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .decoding import decoder_of, decodes_only_images, label_info
from .image_files import UnreadableImageError
from .labels import Colour, LabelInfo

logger = logging.getLogger(__name__)

NUM_SAMPLES = 8  # masks that are read before training and evaluation
MOSTLY = 0.95  # share of the pixels without a class from which a mistake is likely
NUM_SHOWN = 10  # names in a warning


class LabelAccount:
    """Number of pixels of each class in the masks that were read.

    Args:
        labels: The classes.
        num_masks: Masks that the data set has, read or not; None for a stream, of which the first are read.

    Attributes:
        pixels: Number of pixels of each class, (k,) int64.
        no_class: Pixels without a class.
        num_read: Masks that were read.
        numbers: What the files hold before it becomes class ids: number -> masks with it. Empty where masks are read by
            their colours.
    """

    def __init__(self, labels: LabelInfo, num_masks: int | None) -> None:
        self.labels = labels
        self.num_masks = num_masks
        self.pixels = np.zeros(labels.num_labels, dtype=np.int64)
        self.no_class = 0
        self.num_read = 0
        self.numbers: Counter[int] = Counter()
        self._colours: dict[int, Colour] = {}  # number -> its colour in the palettes of the files
        self._palettes_differ = False

    def add(self, annotation: Image.Image) -> None:
        """Count a mask as the data set gives it."""
        k, ignored = self.labels.num_labels, self.labels.ignore_index
        if annotation.mode == "L":
            counts = np.array(annotation.histogram(), dtype=np.int64)
        else:
            counts = np.bincount(np.asarray(annotation).ravel(), minlength=ignored + 1)
        self.pixels += counts[:k]
        self.no_class += int(counts[ignored])
        self.num_read += 1
        numbers = annotation.info["numbers"]
        self.numbers.update(() if numbers is None else numbers())
        for number, colour in (annotation.info["colours"] or {}).items():
            self._palettes_differ |= self._colours.setdefault(number, colour) != colour

    @property
    def missing(self) -> list[str]:
        """Names of the classes that have no pixel."""
        return [self.labels.id2label[index] for index in np.flatnonzero(self.pixels == 0)]

    def as_dict(self) -> dict[str, Any]:
        """Entries for a report: pixels of each class by name and without one, and the number of masks read."""
        return {
            "pixels": {name: int(self.pixels[index]) for index, name in self.labels.id2label.items()},
            "no_class": self.no_class,
            "masks_read": self.num_read,
            "masks": self.num_masks,
        }

    def __str__(self) -> str:
        rows = [*self.as_dict()["pixels"].items(), ("no class", self.no_class)]
        total = max(sum(count for _, count in rows), 1)
        width = max(len(name) for name, _ in rows)
        lines = [f"Labels of {self.labels.name}, {self._read}:", f"{'class':{width}}  {'pixels':>14}      %"]
        return "\n".join([*lines, *(f"{name:{width}}  {n:14,}  {100 * n / total:5.1f}" for name, n in rows)])

    def suspicions(self) -> list[str]:
        """Likely mistakes with their causes; a class without pixels counts as one only if all masks were read."""
        total = int(self.pixels.sum()) + self.no_class
        if not total:
            return []
        found = []
        if self._palettes_differ:
            found.append(
                "The palettes of the masks differ from file to file, and they are read by their numbers: where a tool "
                "gives each file a palette of its own, one number is another class in another file. If the colours are "
                "right, give them (palette) and set read_colours=True."
            )
        missing, names = self.missing, self.labels.id2label
        if set(self.numbers) == {0, 255} and len(names) == 2 and names[1] in missing:
            found.append(
                f"The masks hold only 0 and 255, and 255 means no class here: {names[1]!r} has not one pixel, and the "
                f"network would learn {names[0]!r} alone. For binary masks set "
                'ids={0: 0, 255: 1} (--dataset_options \'{"ids": {"0": 0, "255": 1}}\'); in a data set of your own '
                "make 255 to 1."
            )
            return [f"{self.labels.name}, {self._read}: {text}" for text in found]
        if self.no_class >= MOSTLY * total:
            found.append(
                f"{100 * self.no_class / total:.1f} % of the pixels have no class. Is a class taken for none "
                "(ignore_index, ids), or 255 for no class where it is one?"
            )
        if missing and self.num_read == self.num_masks:
            found.append(f"No pixel is of the class {_quoted(missing)}, which never occurs. {self._cause(missing)}")
        elif len(names) - len(missing) == 1 and len(names) > 1:
            only = next(name for name in names.values() if name not in missing)
            found.append(f"All labelled pixels are {only!r}. Do the other classes have other numbers than 0 to k - 1?")
        return [f"{self.labels.name}, {self._read}: {text}" for text in found]

    def _cause(self, missing: list[str]) -> str:
        highest = self.labels.num_labels - 1
        if self.labels.id2label[highest] not in missing:
            return "Does `classes` name too many, or have the masks other numbers for them (ids)?"
        return (
            f"The highest class, {highest}, is among them: are the numbers shifted by one, because `classes` lacks a "
            "background or has one too many, or because the masks count otherwise (ids)?"
        )

    @property
    def _read(self) -> str:
        if self.num_masks is None:
            return f"the first {self.num_read} masks"
        return (
            f"{self.num_read} masks"
            if self.num_read == self.num_masks
            else f"{self.num_read} of {self.num_masks} masks"
        )


def count_labels(dataset: datasets.Dataset, num_samples: int | None = None, *, progress: bool = False) -> LabelAccount:
    """Count the pixels of each class; masks that cannot be read are left out, images are not read.

    Args:
        dataset: From `load_segmentation_dataset`.
        num_samples: How many masks to read, evenly spread; all by default.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the data set has another origin, or a mask holds a number that it does not know.
    """
    account = LabelAccount(label_info(dataset), len(dataset))
    masks = evenly_spread(masks_of(dataset), len(dataset) if num_samples is None else num_samples)
    for row in tqdm(range(len(masks)), desc="Counting labels", unit="mask", disable=not progress):
        try:
            account.add(masks[row]["annotation"])
        except UnreadableImageError:
            continue
    return account


def check_labels_of(dataset: datasets.Dataset) -> LabelAccount:
    """Read some masks before training or evaluation, and warn of likely mistakes that were not logged before.

    Raises:
        ValueError: As `count_labels`, or if no pixel of the data set has a class, for which all its masks are read.
    """
    account = count_labels(dataset, NUM_SAMPLES)
    _require_labels(account, dataset)
    _warn_of(account, dataset, again=False)
    return account


def check_dataset(
    dataset: datasets.Dataset, num_samples: int | None = None, bad_images: Literal["stop", "skip"] = "stop"
) -> LabelAccount | None:
    """Read images and masks before training starts, raise the first problem, and return the label counts.

    Args:
        dataset: From `load_segmentation_dataset` or `load_unlabelled_images`.
        num_samples: How many rows to read, evenly spread over the data set; all of them, with a progress bar, by
            default.
        bad_images: "skip" goes on over files that cannot be read, as training with `bad_images="skip"` does.

    Returns:
        The pixels of each class, which `print` shows as a table; None for images without labels. What looks like a
        mistake is logged as a warning.

    Raises:
        ValueError: If the data set is empty, of another origin, has no labelled pixel, or a row cannot be used; the
            message names the file.
    """
    labelled = not decodes_only_images(dataset.format["format_kwargs"].get("transform"))
    account = LabelAccount(label_info(dataset), len(dataset)) if labelled else None
    if len(dataset) == 0:
        raise ValueError("The data set is empty.")
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    rows = evenly_spread(dataset, num_samples or len(dataset))
    for index in tqdm(range(len(rows)), desc="Checking the data", unit="image", disable=num_samples is not None):
        try:
            row = rows[index]
        except UnreadableImageError:
            if bad_images != "skip":
                raise
        else:
            if account is not None:
                account.add(row["annotation"])
    if account is not None:
        _require_labels(account, dataset)
        _warn_of(account, dataset, again=True)
        if _is_first_process():
            logger.info(account)
    return account


def evenly_spread(dataset: datasets.Dataset, number: int) -> datasets.Dataset:
    """`number` rows spread over a data set, since neighbours are often frames of one film; all where it has fewer."""
    number = min(number, len(dataset))
    return dataset.select(np.linspace(0, len(dataset) - 1, number).round().astype(int))


def masks_of(dataset: datasets.Dataset) -> datasets.Dataset:
    """Only the annotations; the images too where rows without a mask file need their size."""
    needs_images = decoder_of(dataset).scheme.without_mask is not None
    wanted = ("annotation", "image_id", *(("image",) if needs_images else ()))
    return dataset.select_columns([column for column in dataset.column_names if column in wanted])


def _require_labels(account: LabelAccount, dataset: datasets.Dataset) -> None:
    """Raise if no pixel of a data set has a class; where none of those read has one, masks are read until one has."""
    if account.pixels.any() or not account.num_read:
        return
    masks, ignored = masks_of(dataset), account.labels.ignore_index
    for row in range(len(masks)):
        try:
            if masks[row]["annotation"].getextrema() != (ignored, ignored):
                return
        except UnreadableImageError:
            continue
    raise ValueError(
        f"{account.labels.name}: not one pixel of {len(masks)} masks has a class, so there is nothing to learn from or "
        "to score. Is a class taken for none: do the numbers in the masks need `ids`, or is one of them `ignore_index`?"
    )


def _warn_of(account: LabelAccount, dataset: datasets.Dataset, again: bool) -> None:
    """Log the suspicions of an account; those that were logged of this data set before only if `again`."""
    told = decoder_of(dataset).told
    for suspicion in account.suspicions():
        if _is_first_process() and (again or suspicion not in told):
            logger.warning(suspicion)
        told.add(suspicion)


def _quoted(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:NUM_SHOWN])
    return shown + (f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else "")


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate number processes
