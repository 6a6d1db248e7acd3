"""Picture files that may be damaged, or made to do harm: what they are is known before anything is decoded."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

# PIL goes by the content and not by the name, and of what else it knows some runs a program (EPS: Ghostscript).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")  # phones store previews beside a photo, as MPO, whose first picture it is


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
        _check_size(image, name, max_pixels)
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
        ValueError: If it has more than 8 bits in its only channel; of colours PIL gives the upper 8.
    """
    image = open_image(file, name, max_pixels)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name}: the image has mode {image.mode}, more than 8 bits per channel.")
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # as above
        raise UnreadableImageError(f"{name}: cannot be turned upright and into RGB, damaged: {error}") from error


def _check_size(image: Image.Image, name: str, max_pixels: int | None) -> None:
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels  # PIL itself only warns up to twice its limit
    if limit is not None and image.width * image.height > limit:
        constant = " (PIL.Image.MAX_IMAGE_PIXELS)" if max_pixels is None else ""
        raise UnreadableImageError(
            f"{name}: {image.width} x {image.height} pixels, more than the limit of {limit:,}{constant}: make the "
            "picture smaller, or is the file damaged?"
        )
