"""`as_loaded`: a data set of the Hub or of the user's own, as `load_segmentation_dataset` would give it."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Sized
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import torch

from .columns import ColumnNames, find_columns, kinds_of_features, names_in, with_usual_columns
from .decoding import ImagesAlone, SegmentationDecoder, decode_images, decodes_only_images, with_stored_channels
from .files import FEATURES, numbered
from .labels import LabelScheme
from .rows import RowReader, gives_tensors, rows_are_dicts
from .torch_datasets import AugmentedDataset, EvaluationDataset


class RowImages(ImagesAlone):
    """The transform of a data set of row numbers: the images of these rows of another one.

    Args:
        rows: The other data set, whose own transform gives pictures.
        reader: Reads its rows.
    """

    def __init__(self, rows: Any, reader: RowReader) -> None:
        super().__init__(reader.num_channels)
        self.rows = rows
        self.reader = reader

    def __call__(self, numbers: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Read the images."""
        decoded = dict(numbers)
        if "image" in numbers:
            decoded["image"] = [self.reader.read(self.rows[row], f"row {row}")["image"] for row in numbers["image"]]
        return decoded


class RowDecoder(SegmentationDecoder):
    """As `RowImages`, with the annotations.

    Args:
        rows: The other data set, whose own transform gives pictures.
        reader: Reads its rows.
    """

    def __init__(self, rows: Any, reader: RowReader) -> None:
        super().__init__(reader.scheme, reader.num_channels)
        self.rows = rows
        self.reader = reader

    def __call__(self, numbers: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Read images and annotations; a row whose mask is None has no class anywhere."""
        wanted = [column for column in ("image", "annotation") if column in numbers]
        decoded = {column: [] if column in wanted else values for column, values in numbers.items()}
        for row in numbers[wanted[0]] if wanted else ():
            read = self.reader.read(self.rows[row], f"row {row}")
            for column in wanted:
                decoded[column].append(read[column] if column in read else self.reader.blank(read["image"]))
        return decoded

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowDecoder) and self.rows is other.rows and self.scheme == other.scheme

    __hash__ = None


def is_loaded(dataset: Any) -> bool:
    """Whether a data set is of `load_segmentation_dataset` or `load_unlabelled_images`, or one that has lost it."""
    if not isinstance(dataset, datasets.Dataset):
        return False
    transform = dataset.format["format_kwargs"].get("transform")
    # Without its transform nobody knows what its masks mean: `label_info` says so.
    lost = dataset.features == FEATURES and dataset.format["type"] != "custom"
    return isinstance(transform, SegmentationDecoder) or decodes_only_images(transform) or lost


def as_loaded(
    dataset: Any,
    where: str,
    scheme_for: Callable[[str, list[str] | None], LabelScheme] | None,
    names: ColumnNames = ColumnNames(),  # noqa: B008  a tuple
    num_channels: int | None = None,
) -> Any:
    """The data set with `image`, `annotation`, unless it has no masks, and `image_id`, read as those of this package.

    Args:
        dataset: A `datasets.Dataset` or a torch data set. One that gives tensors, `pixel_values`, is returned as it
            is; so is one of this package.
        where: What errors call it.
        scheme_for: Gives the meaning of the numbers in the masks, from the name of the data set and the names of the
            classes where its features have them; None for images without labels.
        names: The columns of images and masks; by default they are found.
        num_channels: As in `load_segmentation_dataset`.

    Raises:
        ValueError: If there are no columns of images and masks, several could be meant, or rows are no dicts; or if it
            is no data set.
    """
    if dataset is None or is_loaded(dataset) or isinstance(dataset, AugmentedDataset | EvaluationDataset):
        return dataset
    if isinstance(dataset, str | os.PathLike):
        raise ValueError(
            f"{where} is the name {str(dataset)!r}, and must be what is loaded by it: load_segmentation_dataset, or "
            "datasets.load_dataset(..., split=...)."
        )
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise ValueError(f"{where} is a DataLoader, and the trainer makes the batches by itself: pass its data set.")
    if not isinstance(dataset, Sized):
        raise ValueError(
            f"{where} is a {type(dataset).__name__} without __len__: give it one, or pass a torch IterableDataset."
        )
    if len(dataset) == 0:
        raise ValueError(f"{where} is empty.")
    ids = None
    if isinstance(dataset, datasets.Dataset):
        called = str(dataset.info.dataset_name or "own data")
        if "image_id" in dataset.column_names:
            ids = list(map(str, dataset.with_format(None)["image_id"]))
        if dataset.format["type"] != "custom":
            return _of_columns(dataset, where, called, scheme_for, names, num_channels, ids)
    else:
        called = type(dataset).__name__
    row = first_row(dataset, where)
    if gives_tensors(row):
        return dataset
    scheme = None if scheme_for is None else scheme_for(called, None)
    return _of_rows(dataset, RowReader(where, scheme, names, num_channels), ids, row)


def named_classes(dataset: Any, names: ColumnNames) -> list[str] | None:
    """Names of the classes that the features of a data set hold with its masks; None where they hold none."""
    if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset) or dataset.features is None:
        return None
    found = [feature for column, feature in dataset.features.items() if names.mask in (None, column)]
    named = [classes for feature in found if (classes := names_in(feature)) is not None]
    return named[0] if len(named) == 1 else None


def first_row(dataset: Any, where: str) -> Any:
    """The first row; the generators of random numbers stay as they are.

    Raises:
        ValueError: If it is no dict.
    """
    with _kept_generators():
        row = dataset[0]
    if not isinstance(row, dict) and not hasattr(row, "keys"):
        raise ValueError(rows_are_dicts(where, row))
    return row


def _of_columns(
    dataset: datasets.Dataset,
    where: str,
    called: str,
    scheme_for: Callable[[str, list[str] | None], LabelScheme] | None,
    names: ColumnNames,
    num_channels: int | None,
    ids: list[str] | None,
) -> Any:
    """Read the files in the columns themselves; a matrix of class ids, or an array for an image, goes by its rows."""
    seen = dataset.select_columns(dataset.format["columns"])  # set_format can hide some
    kinds = kinds_of_features(seen.features)
    if kinds.get("pixel_values") == "tensor":
        return dataset if dataset.format["type"] in ("torch", "numpy") else dataset.with_format("numpy")
    image, mask = find_columns(kinds, where, names, labelled=scheme_for is not None)
    plain = dataset.with_format(None)
    columns = [image] if mask is None else [image, mask]
    scheme = None if mask is None else scheme_for(called, names_in(dataset.features[mask]))
    if mask is not None and dataset.data.column(mask).null_count:
        scheme = replace(scheme, without_mask=scheme.info.ignore_index)
    if not all(isinstance(dataset.features[column], datasets.Image) for column in columns):
        reader = RowReader(where, scheme, ColumnNames(image, mask), num_channels)
        return _of_rows(plain, reader, ids, plain[0])
    if mask is None:
        plain = plain.select_columns([image, *(["image_id"] if ids else [])]).rename_columns({image: "image"})
        plain = numbered(plain)
        plain = plain.cast(datasets.Features({name: FEATURES[name] for name in plain.column_names}))
        plain.set_transform(decode_images)
    else:
        plain = with_usual_columns(plain, where, image, mask).cast(FEATURES)
        plain.set_transform(SegmentationDecoder(scheme))
    return with_stored_channels(plain, num_channels)


def _of_rows(dataset: Any, reader: RowReader, ids: list[str] | None, row: Any) -> datasets.Dataset:
    """A data set of the numbers of the rows, which are read when they are asked for."""
    labelled = reader.columns(row)[1] is not None
    numbers = list(range(len(dataset)))
    columns = {"image": numbers, **({"annotation": numbers} if labelled else {})}
    columns["image_id"] = ids or [f"image_{number:06d}" for number in numbers]
    split = getattr(dataset, "split", None)
    found = datasets.Dataset.from_dict(columns, split=split if isinstance(split, datasets.NamedSplit) else None)
    found.set_transform((RowDecoder if labelled else RowImages)(dataset, reader))
    return found


@contextlib.contextmanager
def _kept_generators() -> Iterator[None]:
    """Inside, random numbers may be drawn; afterwards the generators stand where they stood."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
