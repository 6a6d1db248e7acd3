"""`open_image`, `read_rgb`: read picture files that may be damaged or malicious; checks come before decoding."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import BinaryIO

from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

logger = logging.getLogger(__name__)

# PIL goes by the content and not by the name, and some of its other formats run a program (EPS: Ghostscript).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")  # phones store previews beside a photo, as MPO, whose first picture it is

# EXIF orientation of the pixels as stored -> what turns them upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Photometric interpretation of a TIFF file -> number of its colours: RGB, CMYK, YCbCr, L*a*b*; of others 1.
CHANNELS = {2: 3, 5: 4, 6: 3, 8: 3}
_told: set[str] = set()


class UnreadableImageError(ValueError):
    """A file that gives no picture: missing, damaged, cut short, too large, of several pictures, or none at all."""


def open_image(file: str | BinaryIO, name: str, max_pixels: int | None = None) -> Image.Image:
    """Decode a picture of any mode, as it is stored.

    Args:
        file: Path or stream.
        name: What errors call it.
        max_pixels: Width times height that a picture may have; by default `PIL.Image.MAX_IMAGE_PIXELS`, 89 million.

    Raises:
        UnreadableImageError: If there is no such picture, which for its size is found before it is decoded.
    """
    try:
        image = Image.open(file, formats=FORMATS)
        check_size(image.width, image.height, name, max_pixels)
        if image.format in ANIMATED and image.is_animated:
            raise UnreadableImageError(f"{name}: holds several pictures (frames or pages). Save the one meant.")
        image.load()
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{name}: the file does not exist (moved since it was listed?).") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"{name}: cannot be decoded: no picture that can be read ({', '.join(FORMATS)}), or a damaged one."
        ) from error
    except Exception as error:  # what PIL's readers stumble over: OSError, SyntaxError, ValueError, struct.error ...
        raise UnreadableImageError(f"{name}: cannot be decoded, damaged or cut short: {error}") from error
    return image


def read_rgb(file: str | BinaryIO, name: str, max_pixels: int | None = None) -> Image.Image:
    """RGB picture, turned upright by its EXIF orientation; transparency is left out. Arguments as in `open_image`.

    Raises:
        UnreadableImageError: As in `open_image`.
        ValueError: If it has more than 8 bits in its only channel, or more channels than colours and transparency. PIL
            gives only the upper 8 bits of 16-bit colours; that, and dropped transparency, is warned of once.
    """
    try:
        image = open_image(file, name, max_pixels)
    except UnreadableImageError:
        with opened(file, name) as stream:
            _refuse_bands(tiff_tags(stream), name)
        raise
    if image.format == "TIFF":
        _refuse_bands(image.tag_v2, name)
    elif image.format == "PNG" and image.mode.startswith("RGB"):
        _tell_of_png_bits(file, name)
    return as_rgb(image, name)


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """A picture in memory as `read_rgb` gives that of a file; arguments and errors as there."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{name}: the image has mode {image.mode}, more than 8 bits per channel. num_channels=1 reads it as it is."
        )
    try:
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            _tell_once(
                "transparency",
                f"{name} has transparent pixels; transparency is left out, and their colours are used as they are "
                "stored. If its last channel is something else, read all with num_channels.",
            )
        if image.getexif().get(ExifTags.Base.Orientation) in TURNS:  # exif_transpose copies upright pictures, too
            image = ImageOps.exif_transpose(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # as above
        raise UnreadableImageError(f"{name}: cannot be turned upright and into RGB, damaged: {error}") from error


def _refuse_bands(tags: TiffImagePlugin.ImageFileDirectory_v2 | None, name: str) -> None:
    """Raise for a TIFF file with channels that PIL drops or cannot read; warn of bits that it drops."""
    if tags is None:
        return
    channels = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    if not isinstance(channels, int):  # the file is damaged
        return
    colours = CHANNELS.get(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION), 1)
    is_transparency = channels == colours + 1 and tags.get(TiffImagePlugin.EXTRASAMPLES) in ((1,), (2,))
    if channels > colours and not is_transparency:
        raise ValueError(
            f"{name}: has {channels} channels (bands), and pictures are read as red, green and blue: the others would "
            f"be dropped. Read all of them with num_channels={channels}, as docs/data.md shows, or save those alone."
        )
    if channels > 1 and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8:
        _tell_once(
            "bits",
            f"{name} has more than 8 bits per channel; the upper 8 are taken. num_channels={channels} keeps them all.",
        )


def _tell_of_png_bits(file: str | BinaryIO, name: str) -> None:
    """Warn of a PNG file of 16-bit colours: PIL gives their upper 8 bits without a word."""
    with opened(file, name) as stream:
        header = stream.read(25)  # signature, length and name of IHDR, width, height, bits of a channel
    if header[24] > 8:
        _tell_once("bits of a PNG", f"{name} has {header[24]} bits per channel; the upper 8 are taken.")


def _tell_once(reason: str, message: str) -> None:
    """Warn only for the first file of something that is mostly true of a whole folder."""
    if reason not in _told:
        _told.add(reason)
        logger.warning(f"{message} (Told of the first such file.)")


def size_and_orientation(file: str | BinaryIO, name: str) -> tuple[tuple[int, int], int]:
    """Width and height of a picture as it is stored, and its EXIF orientation (1 if upright), without decoding it.

    Arguments as in `open_image`.

    Raises:
        UnreadableImageError: If it is no picture.
    """
    with opened(file, name) as stream:
        tags = tiff_tags(stream)
        if tags is not None:  # of any number of bands, which PIL need not know
            sides = tuple(int(tags[tag]) for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH))
            return sides, tags.get(ExifTags.Base.Orientation, 1)
        try:
            image = Image.open(stream, formats=FORMATS)
            return image.size, image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception as error:  # as in `open_image`
            raise UnreadableImageError(f"{name}: no picture that can be read: {error}") from error


def tiff_tags(stream: BinaryIO) -> TiffImagePlugin.ImageFileDirectory_v2 | None:
    """Tags of the first picture of a TIFF file; None of other files. The stream stands at its beginning afterwards."""
    header = stream.read(8)
    if header[:2] not in (b"II", b"MM"):
        stream.seek(0)
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header + (stream.read(8) if header[2] == 43 else b""))
        stream.seek(tags.next)
        tags.load(stream)
        return tags if TiffImagePlugin.IMAGEWIDTH in tags and TiffImagePlugin.IMAGELENGTH in tags else None
    except Exception:  # a damaged file: decoding it raises the error
        return None
    finally:
        stream.seek(0)


def check_size(width: int, height: int, name: str, max_pixels: int | None = None) -> None:
    """Make sure that a picture is not too large to decode; arguments as in `open_image`.

    Raises:
        UnreadableImageError: If it is.
    """
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels  # PIL itself only warns up to twice its limit
    if limit is not None and width * height > limit:
        constant = " (PIL.Image.MAX_IMAGE_PIXELS)" if max_pixels is None else ""
        raise UnreadableImageError(
            f"{name}: {width} x {height} pixels, more than the limit of {limit:,}{constant}: make the "
            "picture smaller, or is the file damaged?"
        )


@contextlib.contextmanager
def opened(file: str | BinaryIO, name: str) -> Iterator[BinaryIO]:
    """The stream of a file, or a stream as it is, at its beginning before and after.

    Raises:
        UnreadableImageError: If there is no such file, or it may not be read.
    """
    if not isinstance(file, str):
        file.seek(0)
        yield file
        file.seek(0)
        return
    try:
        stream = open(file, "rb")  # noqa: SIM115  closed below
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{name}: the file does not exist (moved since it was listed?).") from error
    except OSError as error:
        raise UnreadableImageError(f"{name}: cannot be read: {error}") from error
    with stream:
        yield stream
