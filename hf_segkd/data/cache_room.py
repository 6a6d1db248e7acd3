"""`announce_cache`: how much room the decoded images and masks of data sets take, before the first is decoded."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any

import datasets

from .cache_files import GIB, require_room
from .data_cache import DataCache
from .decoding import SegmentationDecoder, image_key, read_image, stored_channels
from .image_files import UnreadableImageError, size_and_orientation
from .multiband import stored_pixels

logger = logging.getLogger(__name__)

_BYTES_OF_RGB = 4  # Pillow's own pixels


def announce_cache(cache: DataCache, parts: Sequence[datasets.Dataset], limit: float | None) -> None:
    """Tell how much room the cache takes of these data sets when it is full, and make sure that there is so much.

    The sizes of images are read from their headers; a file that can't be read takes none.

    Args:
        cache: Where images and masks are kept.
        parts: From `load_segmentation_dataset` or `load_unlabelled_images`.
        limit: GiB that they may take, None for all that the disk has.

    Raises:
        ValueError: If the limit is lower, or the disk has less room.
    """
    there, missing = (sum(numbers) for numbers in zip(*(_bytes(cache, part) for part in parts), strict=True))
    size = (
        f"The decoded images and masks of {sum(map(len, parts))} rows take {(there + missing) / GIB:.3g} GiB in the "
        f"data cache {cache.folder}; {there / GIB:.3g} GiB are there"
    )
    less = "Leave data_cache out, or make the images smaller."
    logger.warning(require_room(cache.folder, there + missing, missing, limit, "data_cache_limit", size, less))


def _bytes(cache: DataCache, part: datasets.Dataset) -> tuple[int, int]:
    """Bytes of a data set's cached files, and of those that it lacks."""
    decoder, num_channels = part.format["format_kwargs"].get("transform"), stored_channels(part)
    rows = part.with_format(None)
    of_image = _bytes_of_pixel(rows, num_channels)
    columns = {"image": (image_key(num_channels), of_image)}
    if isinstance(decoder, SegmentationDecoder):
        columns["annotation"] = (decoder.mask_key, decoder.mask_bytes)
    there = missing = 0
    for row in rows:
        pixels = None
        for column, (how, of_pixel) in columns.items():
            if row[column] is None:  # an image without a mask file
                continue
            try:
                there += cache.file(row[column], how).stat().st_size
            except OSError:  # a mask is as large as its image
                pixels = _pixels(row["image"], num_channels) if pixels is None else pixels
                missing += of_pixel * pixels
    return there, missing


def _pixels(cell: dict[str, Any], num_channels: int | None) -> int:
    source = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
    try:
        if num_channels is not None:
            return stored_pixels(source, str(cell["path"]), num_channels)
        (width, height), _ = size_and_orientation(source, str(cell["path"]))
    except UnreadableImageError:
        return 0
    return width * height


def _bytes_of_pixel(rows: datasets.Dataset, num_channels: int | None) -> int:
    """Bytes of an image's pixel; those of bands as they are in the first image that can be read."""
    if num_channels is None:
        return _BYTES_OF_RGB
    for row in rows:
        try:
            return num_channels * read_image(row["image"], num_channels).values.itemsize
        except UnreadableImageError:
            continue
    return 0
