"""`RowReader`: the image and the class ids of a row of any data set, whatever form they have."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from .columns import ColumnNames, find_columns, kinds_of_row
from .decoding import read_image
from .image_files import UnreadableImageError, as_rgb
from .labels import IGNORE_INDEX, WIDE_IGNORE_INDEX, LabelInfo, LabelScheme
from .mask_ids import MaskReader
from .multiband import MultiBandImage

logger = logging.getLogger(__name__)

ID_COLUMNS = ("image_id", "__key__")  # the second is webdataset's


class RowReader:
    """Reads the rows of one data set.

    Args:
        where: What errors call the data set.
        scheme: What the numbers in the masks mean; None for images without labels, whose masks are not read.
        names: The columns that the user names; by default they are found in the first row.
        num_channels: As in `load_segmentation_dataset`.
    """

    def __init__(
        self,
        where: str,
        scheme: LabelScheme | None,
        names: ColumnNames = ColumnNames(),  # noqa: B008  a tuple
        num_channels: int | None = None,
    ) -> None:
        self.where = where
        self.scheme = scheme
        self.names = names
        self.num_channels = num_channels
        self._masks = None if scheme is None else MaskReader(scheme)
        self._found: dict[frozenset[str], tuple[str, str | None]] = {}

    def columns(self, row: Mapping[str, Any]) -> tuple[str, str | None]:
        """The entries of a row that hold image and mask; None where it has no mask.

        Raises:
            ValueError: As `find_columns`.
        """
        key = frozenset(row)
        if key not in self._found:
            labelled = self.scheme is not None
            image, mask = find_columns(kinds_of_row(row), self.where, self.names, labelled)
            self._found[key] = image, mask
            if labelled and mask is None:
                logger.warning(f"{self.where} has no column of masks ({', '.join(row)}): images without labels.")
        return self._found[key]

    @property
    def has_labels(self) -> bool:
        """Whether rows that were read have an entry for masks."""
        return any(mask is not None for _, mask in self._found.values())

    def name_of(self, row: Mapping[str, Any], place: str) -> str:
        """The image's own name, or its place."""
        return next((str(row[column]) for column in ID_COLUMNS if column in row), place)

    def read(self, row: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Image and class ids.

        Args:
            row: Holds pictures (PIL, the bytes of a file, `{"path": ..., "bytes": ...}`, uint8) or matrices of class
                ids.
            place: What an image without a name is called.

        Returns:
            `image`, `image_id`, and where the row has a mask `annotation`, as `SegmentationDecoder` gives them.

        Raises:
            ValueError: If the row holds no image, or as `SegmentationDecoder`.
        """
        if not isinstance(row, Mapping):
            raise ValueError(rows_are_dicts(self.where, row))
        image_column, mask_column = self.columns(row)
        name = self.name_of(row, place)
        read = {"image": self._image(row[image_column], f"{image_column} of {name}"), "image_id": name}
        if mask_column is not None and row[mask_column] is not None:
            annotation = self._mask(row[mask_column], f"{mask_column} of {name}")
            if annotation.size != read["image"].size:
                raise ValueError(
                    f"{name}: {image_column} is {_size(read['image'])} pixels but its mask {mask_column} is "
                    f"{_size(annotation)}."
                )
            read["annotation"] = annotation
        return read

    def blank(self, image: Image.Image | MultiBandImage) -> Image.Image:
        """The annotation of an image that has none: no class all over."""
        ignored = self.scheme.info.ignore_index
        annotation = Image.new("L" if ignored <= IGNORE_INDEX else "I;16", image.size, ignored)
        annotation.info = {"numbers": None, "colours": None}
        return annotation

    def _image(self, value: Any, name: str) -> Image.Image | MultiBandImage:
        value = _fetched(value, name)
        if isinstance(value, bytes | Mapping):
            return read_image(_file(value, name), self.num_channels)
        if self.num_channels is not None:
            values = np.asarray(value)
            values = values[..., None] if values.ndim == 2 else _channels_last(values)
            if values.shape[2] != self.num_channels:
                raise ValueError(f"{name}: has {values.shape[2]} bands, and num_channels is {self.num_channels}.")
            return MultiBandImage(values)
        if isinstance(value, Image.Image):
            return as_rgb(value, name)
        pixels = _channels_last(np.asarray(value))
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.min() < 0 or pixels.max() > 255:
            raise ValueError(
                f"{name}: {pixels.dtype} numbers of shape {pixels.shape}, need uint8 of (h, w, 3), or a picture."
            )
        pixels = np.ascontiguousarray(pixels.astype(np.uint8))
        return as_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), name)

    def _mask(self, value: Any, name: str) -> Image.Image:
        value = _fetched(value, name)
        if isinstance(value, bytes | Mapping):
            file = _file(value, name)
            source = file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])
            return self._masks.read(source, file["path"])
        if isinstance(value, Image.Image):
            return self._masks.of_picture(value, name)
        numbers = np.asarray(value)
        if numbers.ndim == 3:
            numbers = _channels_last(numbers)
            numbers = numbers[..., 0] if numbers.shape[2] == 1 else numbers
        if numbers.ndim != 2:
            raise ValueError(f"{name}: a mask of shape {numbers.shape}, need (h, w) class ids.")
        if numbers.dtype.kind == "i":  # -1 is `datasets.ClassLabel`'s "no label"
            numbers = np.where(numbers == -1, self.scheme.info.ignore_index, numbers.astype(np.int64))
        return self._masks.of_numbers(numbers, name)


def gives_tensors(row: Any) -> bool:
    """Whether a row is ready for the network: `pixel_values` are floats, of three dimensions or wrongly other ones."""
    if not isinstance(row, Mapping) or "pixel_values" not in row:
        return False
    values = row["pixel_values"]
    if isinstance(values, torch.Tensor):
        return True
    return isinstance(values, np.ndarray | list) and np.asarray(values).dtype.kind == "f"


def rows_are_dicts(where: str, row: Any) -> str:
    """Message for rows that are something else, as the pairs of torchvision's data sets."""
    return (
        f"{where} gives rows that are a {type(row).__name__}, and they must be dicts: of an image and a mask, or of "
        "pixel_values (3, h, w) float32 and labels (h, w) integers."
    )


def scheme_of(labels: LabelInfo, reduce_labels: bool) -> LabelScheme:
    """Masks whose numbers are the classes.

    Args:
        labels: The classes.
        reduce_labels: Whether 0 means no class and the classes begin at 1, as `do_reduce_labels` of an image processor
            says.
    """
    no_class, shift = labels.ignore_index, int(reduce_labels)
    numbers = {number: no_class for number in (IGNORE_INDEX, WIDE_IGNORE_INDEX) if number >= no_class}
    numbers |= {0: no_class} if reduce_labels else {}
    numbers |= {class_id + shift: class_id for class_id in labels.id2label}
    hint = (
        "0 is taken for no class, as do_reduce_labels of the image processor says."
        if reduce_labels
        else "Their numbers are taken for those of the network's config (id2label): does it lack a class, or do they "
        "begin at 1 (do_reduce_labels=True of the image processor then takes 0 for no class)?"
    )
    return LabelScheme(labels, numbers, hint)


def _file(value: bytes | Mapping[str, Any], name: str) -> dict[str, Any]:
    """A cell of an `Image(decode=False)` column, with a path for messages."""
    if isinstance(value, bytes):
        return {"path": name, "bytes": value}
    return {"path": value["path"] or name, "bytes": value["bytes"]}


def _fetched(value: Any, name: str) -> Any:
    """A picture in memory in place of one that lies elsewhere, as in streams of the Hub; other values as they are."""
    if not isinstance(value, Mapping) or value["bytes"] is not None or "://" not in value["path"]:
        return value
    try:
        return datasets.Image().decode_example(dict(value))
    except Exception as error:  # of the network, or what PIL's readers stumble over
        raise UnreadableImageError(f"{name} ({value['path']}): cannot be read: {error}") from error


def _channels_last(values: np.ndarray) -> np.ndarray:
    """(h, w, c), also of (c, h, w) with few channels."""
    if values.ndim == 3 and values.shape[0] in (1, 3) and values.shape[2] not in (1, 3):
        return np.moveaxis(values, 0, 2)
    return values


def _size(image: Image.Image | MultiBandImage) -> str:
    return f"{image.width} x {image.height}"
