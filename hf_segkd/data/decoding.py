"""`SegmentationDecoder`: decodes and checks the image and annotation of a row, with errors that name the file."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
from PIL import Image

from .data_cache import DataCache
from .image_files import open_image, read_rgb
from .labels import LabelInfo, LabelScheme
from .mask_ids import MaskReader
from .multiband import MultiBandImage, read_bands

ORIENTATION_TAG = 0x0112  # EXIF


class SegmentationDecoder:
    """The transform of every data set of this package: decodes, checks, and converts label ids.

    It is set with `Dataset.set_transform`, so it follows the data set through `select`, `shuffle`,
    `train_test_split`, pickling and into workers, and it carries the labels that `label_info` reads back.

    Args:
        scheme: Meaning of the numbers in the masks.
        num_channels: Read images as they are stored, with so many bands and all their bits; by default as RGB.

    Attributes:
        told: Warnings of the labels that were logged.
        cache: Where decoded images and masks are kept; None for nowhere.
    """

    def __init__(self, scheme: LabelScheme, num_channels: int | None = None) -> None:
        self.scheme = scheme
        self.num_channels = num_channels
        self.told: set[str] = set()
        self.cache: DataCache | None = None
        self._masks = MaskReader(scheme)

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Decode a batch of rows.

        Args:
            rows: Any of the columns `image` and `annotation` (`{"path": ..., "bytes": ...}`), `image_id` and others.

        Returns:
            The same columns: `image` as PIL RGB, or with `num_channels` as `MultiBandImage`; `annotation` as PIL "L"
            with class ids 0..k-1 and 255; with more than 255 classes as "I;16" with 65535.

        Raises:
            ValueError: If a file is damaged, too large, of the wrong mode, has labels that the data set does not
                know, or if image and annotation differ in size. The message names the file.
        """
        decoded = decode_images(rows, self.num_channels, self.cache)
        if "annotation" not in rows:
            return decoded
        masks = _name_files(rows, "annotation")
        sizes = [image.size for image in decoded["image"]] if "image" in rows else [None] * len(masks)
        decoded["annotation"] = [self._read_mask(mask, size) for mask, size in zip(masks, sizes, strict=True)]
        if "image" in rows:
            images = _name_files(rows, "image")
            for row, (image, annotation) in enumerate(zip(decoded["image"], decoded["annotation"], strict=True)):
                if image.size != annotation.size:
                    raise ValueError(_size_mismatch(images[row], image, masks[row], annotation))
        return decoded

    @property
    def mask_key(self) -> list[Any]:
        """What a decoded mask depends on besides its file, for a `DataCache`."""
        return ["mask", self._masks.tables]

    @property
    def mask_bytes(self) -> int:
        """Bytes of a pixel of a decoded mask."""
        return self._masks.dtype().itemsize

    def _read_mask(self, file: dict[str, Any] | None, size: tuple[int, int] | None) -> Image.Image:
        """Class ids of a mask file, or of an image of this size that has none."""
        if file is not None:
            return _kept(self.cache, file, self.mask_key, lambda: self._masks.read(_source(file), file["path"]))
        if size is None:
            raise ValueError("An image without a mask file gives its annotation its size: select its column too.")
        return self._masks.blank(size)

    def __eq__(self, other: object) -> bool:
        # So that concatenate_datasets keeps the transform of data sets of one kind.
        same = isinstance(other, SegmentationDecoder) and self.scheme == other.scheme
        return same and self.num_channels == other.num_channels

    __hash__ = None  # a scheme holds dictionaries


def decode_images(
    rows: dict[str, list[Any]], num_channels: int | None = None, cache: DataCache | None = None
) -> dict[str, list[Any]]:
    """The transform of images without annotations: as `SegmentationDecoder`, and all that it does to images."""
    decoded = dict(rows)
    if "image" in rows:
        decoded["image"] = [
            _kept(cache, file, image_key(num_channels), partial(read_image, file, num_channels))
            for file in _name_files(rows, "image")
        ]
    return decoded


def image_key(num_channels: int | None) -> list[Any]:
    """What a decoded image depends on besides its file, for a `DataCache`."""
    return ["image", num_channels]


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


def with_cache(dataset: datasets.Dataset, cache: DataCache) -> datasets.Dataset:
    """The data set with its images and masks kept in a cache.

    Args:
        dataset: From `load_segmentation_dataset` or `load_unlabelled_images`.
        cache: Where they are kept.

    Raises:
        ValueError: If the data set has another origin.
    """
    transform = dataset.format["format_kwargs"].get("transform")
    if decodes_only_images(transform):
        return dataset.with_transform(partial(decode_images, num_channels=stored_channels(dataset), cache=cache))
    decoder = copy.copy(decoder_of(dataset))
    decoder.cache = cache
    return dataset.with_transform(decoder)


def stored_channels(dataset: datasets.Dataset) -> int | None:
    """Number of bands that the images of a data set are read with as they are stored; None where they are RGB."""
    transform = dataset.format["format_kwargs"].get("transform")
    if isinstance(transform, SegmentationDecoder | ImagesAlone):
        return transform.num_channels
    return transform.keywords["num_channels"] if isinstance(transform, partial) else None


class ImagesAlone:
    """A transform of images without annotations other than `decode_images`.

    Args:
        num_channels: As in `SegmentationDecoder`.
    """

    def __init__(self, num_channels: int | None = None) -> None:
        self.num_channels = num_channels


def decodes_only_images(transform: Any) -> bool:
    """Whether a data set's transform is that of images without annotations."""
    return getattr(transform, "func", transform) is decode_images or isinstance(transform, ImagesAlone)


def label_info(dataset: datasets.Dataset) -> LabelInfo:
    """Names and colours of the classes of a data set from `load_segmentation_dataset`.

    Also of several that `datasets.concatenate_datasets` has joined, where they were loaded with the same options.

    Raises:
        ValueError: If the data set has another origin, or has lost its transform through `set_format`.
    """
    return decoder_of(dataset).scheme.info


def decoder_of(dataset: datasets.Dataset) -> SegmentationDecoder:
    """The transform of a data set; otherwise as `label_info`."""
    transform = dataset.format["format_kwargs"].get("transform")
    if decodes_only_images(transform):
        raise ValueError("This data set has no annotations, and so no classes: it is one of unlabelled images.")
    if not isinstance(transform, SegmentationDecoder):
        raise ValueError(
            "This data set carries no label information: it was not made by load_segmentation_dataset, or "
            "set_format, with_format or set_transform has replaced its transform, or concatenate_datasets has joined "
            "data sets whose classes or options differ, or labelled with unlabelled ones. Load all parts with the same "
            "classes and options."
        )
    return transform


def _kept(
    cache: DataCache | None, file: dict[str, Any], key: list[Any], decode: Callable[[], Image.Image | MultiBandImage]
) -> Image.Image | MultiBandImage:
    return decode() if cache is None else cache.read(file, key, decode)


def _source(file: dict[str, Any]) -> str | io.BytesIO:
    return file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])


def _name_files(rows: dict[str, list[Any]], column: str) -> list[dict[str, Any] | None]:
    """The cells of a column, None where there is no file; pictures without a path are named by their row."""
    image_ids = rows.get("image_id", ["unknown"] * len(rows[column]))
    return [
        file if file is None or file["path"] else {"path": f"{column} of image_id {image_id}", "bytes": file["bytes"]}
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
