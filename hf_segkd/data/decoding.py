"""From the files of a row to a checked image and annotation, with errors that name the file."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any, Literal

import datasets
import numpy as np
from PIL import Image

from .image_files import UnreadableImageError, open_image, read_rgb
from .labels import LabelInfo, LabelScheme
from .multiband import MultiBandImage, read_bands

INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")
COLOUR_MODES = ("RGB", "RGBA")
ORIENTATION_TAG = 0x0112  # EXIF


class SegmentationDecoder:
    """The transform of every data set of this package: decodes, checks, and converts label ids, once and for all.

    It is set with `Dataset.set_transform`, so it follows the data set through `select`, `shuffle`,
    `train_test_split`, pickling and into workers, and it carries the labels that `label_info` reads back.

    Args:
        scheme: Meaning of the numbers in the masks.
        num_channels: Read images as they are stored, with so many bands and all their bits; by default as RGB.
    """

    def __init__(self, scheme: LabelScheme, num_channels: int | None = None) -> None:
        self.scheme = scheme
        self.num_channels = num_channels
        table = np.full(256, -1, dtype=np.int16)
        for raw, class_id in scheme.raw_to_id.items():
            table[raw] = class_id
        self._is_known = table >= 0
        self._table = np.where(self._is_known, table, 0).tolist()

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Decode a batch of rows.

        Args:
            rows: Any of the columns `image` and `annotation` (`{"path": ..., "bytes": ...}`), `image_id` and others.

        Returns:
            The same columns: `image` as PIL RGB, or with `num_channels` as `MultiBandImage`; `annotation` as PIL "L"
            with class ids 0..k-1 and 255.

        Raises:
            ValueError: If a file is damaged, too large, of the wrong mode, has labels that the data set does not
                know, or if image and annotation differ in size. The message names the file.
        """
        decoded = decode_images(rows, self.num_channels)
        if "annotation" not in rows:
            return decoded
        masks = _name_files(rows, "annotation")
        decoded["annotation"] = [self._read_annotation(file) for file in masks]
        if "image" in rows:
            images = _name_files(rows, "image")
            for row, (image, annotation) in enumerate(zip(decoded["image"], decoded["annotation"], strict=True)):
                if image.size != annotation.size:
                    raise ValueError(_size_mismatch(images[row], image, masks[row], annotation))
        return decoded

    def _read_annotation(self, file: dict[str, Any]) -> Image.Image:
        """Class ids as PIL "L" from a mask file."""
        indices = Image.fromarray(self._read_indices(file))
        # A histogram and a table look-up inside PIL take half the time of indexing a numpy table.
        unknown = np.flatnonzero(np.asarray(indices.histogram(), dtype=bool) & ~self._is_known)
        if len(unknown):
            values = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            info = self.scheme.info
            raise ValueError(
                f"{file['path']}: label out of range: {values}; {info.name} has {info.num_labels} classes. "
                f"{self.scheme.out_of_range_hint}"
            )
        return indices.point(self._table)

    def _read_indices(self, file: dict[str, Any]) -> np.ndarray:
        """The (h, w) uint8 numbers in a mask file, before their conversion."""
        mask = open_image(_source(file), file["path"])
        if mask.mode in COLOUR_MODES and self.scheme.decode_colours is not None:
            try:
                return np.ascontiguousarray(self.scheme.decode_colours(np.asarray(mask.convert("RGB"))))
            except ValueError as error:
                raise ValueError(f"{file['path']}: cannot read the {mask.mode} mask: {error}.") from error
        if mask.mode not in INDEX_MODES:
            raise ValueError(
                f"{file['path']}: the mask has mode {mask.mode}, need one channel of class ids (PIL mode L or P). "
                "It looks like a colour picture of the labels, or an index mask saved with .convert('RGB')."
            )
        indices = np.asarray(mask)
        if indices.dtype != np.uint8:
            if indices.min() < 0 or indices.max() > 255:
                raise ValueError(
                    f"{file['path']}: label out of range: {indices.min()}..{indices.max()} in a mask of mode "
                    f"{mask.mode}, need 0..255. Are these instance ids instead of class ids?"
                )
            indices = indices.astype(np.uint8)
        return indices


def decode_images(rows: dict[str, list[Any]], num_channels: int | None = None) -> dict[str, list[Any]]:
    """The transform of images without annotations: as `SegmentationDecoder`, and all that it does to images."""
    decoded = dict(rows)
    if "image" in rows:
        decoded["image"] = [read_image(file, num_channels) for file in _name_files(rows, "image")]
    return decoded


def read_image(file: dict[str, Any], num_channels: int | None = None) -> Image.Image | MultiBandImage:
    """RGB image, turned upright by its EXIF orientation; or all its bands as they are stored.

    Args:
        file: A cell of an `Image(decode=False)` column: `path`, and `bytes` unless they are to be read from there.
        num_channels: Number of bands; None for RGB.

    Raises:
        ValueError: As `read_rgb` and `read_bands`.
    """
    if num_channels is not None:
        return read_bands(_source(file), file["path"], num_channels)
    return read_rgb(_source(file), file["path"])


def with_stored_channels(dataset: datasets.Dataset, num_channels: int | None) -> datasets.Dataset:
    """The data set with its images read as they are stored, in so many bands; as it is for None.

    Args:
        dataset: From `load_segmentation_dataset` or `load_unlabelled_images`.
        num_channels: Number of bands.

    Raises:
        ValueError: If the number is not positive.
    """
    if num_channels is None:
        return dataset
    if not isinstance(num_channels, int) or num_channels < 1:
        raise ValueError(f"num_channels must be the number of bands of the images, from 1, got {num_channels!r}.")
    decoder = copy.copy(dataset.format["format_kwargs"]["transform"])
    if isinstance(decoder, SegmentationDecoder):
        decoder.num_channels = num_channels
    else:
        decoder = partial(decode_images, num_channels=num_channels)
    return dataset.with_transform(decoder)


def stored_channels(dataset: datasets.Dataset) -> int | None:
    """Number of bands that the images of a data set are read with as they are stored; None where they are RGB."""
    transform = dataset.format["format_kwargs"].get("transform")
    if isinstance(transform, SegmentationDecoder):
        return transform.num_channels
    return transform.keywords["num_channels"] if isinstance(transform, partial) else None


def _decodes_images_alone(transform: Any) -> bool:
    return getattr(transform, "func", transform) is decode_images


def label_info(dataset: datasets.Dataset) -> LabelInfo:
    """Names and colours of the classes of a data set from `load_segmentation_dataset`.

    Raises:
        ValueError: If the data set has another origin, or has lost its transform through `set_format`.
    """
    transform = dataset.format["format_kwargs"].get("transform")
    if _decodes_images_alone(transform):
        raise ValueError("This data set has no annotations, and so no classes: it is one of unlabelled images.")
    if not isinstance(transform, SegmentationDecoder):
        raise ValueError(
            "This data set carries no label information: it was not made by load_segmentation_dataset, or "
            "set_format, with_format or set_transform has replaced its transform."
        )
    return transform.scheme.info


def evenly_spread(dataset: datasets.Dataset, number: int) -> datasets.Dataset:
    """So many rows from all over a data set, since neighbours are often frames of one film; all where it has fewer."""
    number = min(number, len(dataset))
    return dataset.select(np.linspace(0, len(dataset) - 1, number).round().astype(int))


def check_dataset(
    dataset: datasets.Dataset, num_samples: int | None = None, bad_images: Literal["stop", "skip"] = "stop"
) -> None:
    """Read images and masks before training starts and raise the first problem.

    Args:
        dataset: From `load_segmentation_dataset` or `load_unlabelled_images`.
        num_samples: How many rows to read, evenly spread over the data set; all of them by default.
        bad_images: "skip" goes on over files that cannot be read, as training with `bad_images="skip"` does.

    Raises:
        ValueError: If the data set is empty, of another origin, or a row cannot be used; it names the file.
    """
    if not _decodes_images_alone(dataset.format["format_kwargs"].get("transform")):
        label_info(dataset)
    if len(dataset) == 0:
        raise ValueError("The data set is empty.")
    if num_samples is not None and num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
    rows = evenly_spread(dataset, num_samples or len(dataset))
    for index in range(len(rows)):
        try:
            rows[index]
        except UnreadableImageError:
            if bad_images != "skip":
                raise


def _source(file: dict[str, Any]) -> str | io.BytesIO:
    return file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])


def _name_files(rows: dict[str, list[Any]], column: str) -> list[dict[str, Any]]:
    """The cells of a column; pictures without a path, stored in the data set itself, are named by their row."""
    image_ids = rows.get("image_id", ["unknown"] * len(rows[column]))
    return [
        file if file["path"] else {"path": f"{column} of image_id {image_id}", "bytes": file["bytes"]}
        for file, image_id in zip(rows[column], image_ids, strict=True)
    ]


def _size_mismatch(image_file: dict, image: Image.Image | MultiBandImage, mask_file: dict, mask: Image.Image) -> str:
    """Message for an image and a mask of different size, with the usual cause where it applies."""
    message = (
        f"{image_file['path']} is {image.width} x {image.height} pixels but its mask {mask_file['path']} is "
        f"{mask.width} x {mask.height}."
    )
    if isinstance(image, MultiBandImage):
        return message
    orientation = open_image(_source(image_file), image_file["path"]).getexif().get(ORIENTATION_TAG, 1)
    if orientation != 1 and image.size == mask.size[::-1]:
        message += (
            f" The photo carries EXIF orientation {orientation} and was turned upright; the mask was drawn on the "
            "pixels as stored. Rotate one of the files for good."
        )
    return message
