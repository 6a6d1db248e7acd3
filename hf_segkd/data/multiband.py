"""`MultiBandImage`, `read_bands`: images of any number of bands with all their bits, as of satellites or depth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .image_files import UnreadableImageError, check_size, open_image, opened, size_and_orientation, tiff_tags

if TYPE_CHECKING:
    import tifffile

# PIL's modes whose numbers are measurements, as they are stored.
STORED_MODES = ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B", "F")
PREVIEW_PERCENTILES = (2, 98)
PALETTE = 3  # photometric interpretation of TIFF


class MultiBandImage:
    """Bands of an image as they are stored, with the part of `PIL.Image.Image` that this package uses.

    `np.asarray(image)` gives the (h, w, n) numbers.

    Args:
        values: (h, w, n), integers or floats.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.values.shape[1]

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.values.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    def getbands(self) -> tuple[str, ...]:
        """Names of the bands: their numbers from 1."""
        return tuple(str(band) for band in range(1, self.values.shape[2] + 1))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def resize(
        self,
        size: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.BILINEAR,
        box: tuple[float, float, float, float] | None = None,
    ) -> MultiBandImage:
        """As PIL's: another width and height, of a part maybe. The result is float32 and not rounded."""
        bands = (Image.fromarray(np.float32(band)) for band in np.moveaxis(self.values, 2, 0))
        return MultiBandImage(np.stack([np.asarray(band.resize(size, resample, box)) for band in bands], axis=2))

    def transpose(self, method: Image.Transpose) -> MultiBandImage:
        """As PIL's, but only for the flip of left and right."""
        assert method is Image.Transpose.FLIP_LEFT_RIGHT, method
        return MultiBandImage(self.values[:, ::-1])

    def convert(self, mode: str) -> Image.Image:
        """A picture to look at, "RGB": the first three bands (else the first), each from its dark to its bright end."""
        assert mode == "RGB", mode
        shown = np.float32(self.values[..., :3] if self.values.shape[2] >= 3 else self.values[..., :1])
        low, high = np.percentile(shown, PREVIEW_PERCENTILES, axis=(0, 1))
        grey = (255 * (shown - low) / np.maximum(high - low, 1e-6)).clip(0, 255).round().astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:2], 3))))


def read_bands(file: str | BinaryIO, name: str, num_channels: int, max_pixels: int | None = None) -> MultiBandImage:
    """All bands of a picture, with all their bits.

    TIFF is read by tifffile: bands in one picture, interleaved or one after the other, or in a page each. Pictures of
    other formats are read by PIL. Nothing is converted.

    Args:
        file: Path or stream.
        name: What errors call it.
        num_channels: Number of bands that it must have.
        max_pixels: See `open_image`.

    Raises:
        UnreadableImageError: As in `open_image`.
        ValueError: If the bands are others in number, no measurements (a palette), not finite, or stored turned.
        ImportError: If a TIFF file is to be read and tifffile is not there.
    """
    with opened(file, name) as stream:
        tags = tiff_tags(stream)
        is_tiff = tags is not None or stream.read(2) in (b"II", b"MM")
        stream.seek(0)
        values = (
            _read_tiff(stream, name, num_channels, max_pixels) if is_tiff else _read_other(stream, name, max_pixels)
        )
    if values.shape[2] != num_channels:
        raise ValueError(_other_number(name, values.shape[2], num_channels))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(
            f"{name}: {np.count_nonzero(~np.isfinite(values))} of {values.size} numbers are not finite (no data?). Put "
            "a number in their place, such as the mean, and label their pixels 255."
        )
    return MultiBandImage(values)


def stored_pixels(file: str | BinaryIO, name: str, num_channels: int) -> int:
    """Width times height of a picture, as its header tells; arguments and errors as in `read_bands`."""
    with opened(file, name) as stream:
        if tiff_tags(stream) is not None:
            return math.prod(_tiff_picture(stream, name).shape) // num_channels
    (width, height), _ = size_and_orientation(file, name)
    return width * height


def _tiff_picture(stream: BinaryIO, name: str) -> tifffile.TiffPageSeries:
    """The only picture of a TIFF file, not yet decoded."""
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(
            "TIFF files of several bands or 16 bits need tifffile: pip install 'hf-segkd[tiff]'"
        ) from error
    try:
        series = tifffile.TiffFile(stream).series
        pictures = [picture for picture in series if not (picture.keyframe.is_reduced or picture.keyframe.is_mask)]
    except Exception as error:  # damaged files raise errors of any kind
        raise UnreadableImageError(f"{name}: cannot be decoded, damaged or cut short: {error}") from error
    if not pictures:
        raise UnreadableImageError(f"{name}: cannot be decoded: it holds no picture, damaged or cut short.")
    if len(pictures) > 1:
        raise UnreadableImageError(f"{name}: holds {len(pictures)} pictures (pages). Save the one meant.")
    return pictures[0]


def _read_tiff(stream: BinaryIO, name: str, num_channels: int, max_pixels: int | None) -> np.ndarray:
    picture = _tiff_picture(stream, name)
    page, shape = picture.keyframe, picture.shape
    others = [place for place, axis in enumerate(picture.axes) if axis not in "YX"]
    if len(others) == 1 and shape[others[0]] != num_channels == shape[-1] and picture.kind == "shaped":
        others = [2]  # by default tifffile.imwrite takes the rows of a (h, w, n) array for pages
    found = math.prod(shape[place] for place in others)
    if len(others) > 1 or found != num_channels:  # before anything is decoded
        raise ValueError(_other_number(name, found, num_channels))
    height, width = (side for place, side in enumerate(shape) if place not in others)
    check_size(width, height, name, max_pixels)
    is_palette = page.photometric == PALETTE
    if is_palette or picture.dtype.kind not in "uif":
        kind = "places in a palette" if is_palette else picture.dtype
        raise ValueError(f"{name}: its numbers ({kind}) are no measurements.")
    if (turn := page.tags.get(int(ExifTags.Base.Orientation))) is not None and turn.value != 1:
        raise ValueError(f"{name}: is stored turned (its tag Orientation is {turn.value}). Save it upright.")
    try:
        values = picture.asarray()
    except Exception as error:  # as above; also a compression that needs a package
        raise UnreadableImageError(f"{name}: cannot be decoded: {error}") from error
    return np.moveaxis(values, others[0], 2) if others else values[..., None]


def _read_other(stream: BinaryIO, name: str, max_pixels: int | None) -> np.ndarray:
    header = stream.read(25)
    stream.seek(0)
    image = open_image(stream, name, max_pixels)
    if image.mode not in STORED_MODES:
        raise ValueError(
            f"{name}: has PIL's mode {image.mode}, whose numbers are no measurements; bands are read of "
            f"{', '.join(STORED_MODES)}."
        )
    if image.format == "PNG" and header[24] == 16 and len(image.getbands()) > 1:
        raise ValueError(
            f"{name}: is a PNG of {len(image.getbands())} channels of 16 bits, of which PIL reads the upper 8. Save it "
            "as TIFF, of which all are read."
        )
    values = np.asarray(ImageOps.exif_transpose(image))
    return values if values.ndim == 3 else values[..., None]


def _other_number(name: str, found: int, num_channels: int) -> str:
    return (
        f"{name}: has {found} bands, and images are read with num_channels={num_channels}. All images of a data set "
        "have the same bands."
    )
