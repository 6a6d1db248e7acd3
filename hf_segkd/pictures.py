"""Pictures of segmentations: people look before they read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Palette = Sequence[tuple[int, int, int]]


def colour(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Class ids (h, w) as colours (h, w, 3) uint8; ids beyond the palette, such as 255, are white."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = np.asarray(palette, dtype=np.uint8)
    return table[mask]


def overlay(image: Image.Image, mask: np.ndarray, palette: Palette, opacity: float = 0.6) -> Image.Image:
    """The image with its classes (h, w) laid over it; `opacity` 1 hides the image, 0 the classes."""
    return Image.blend(image.convert("RGB"), Image.fromarray(colour(mask, palette)), opacity)


def legend(names: Sequence[str], palette: Palette, width: int) -> Image.Image:
    """A strip of `width` pixels that names the colours, as many lines high as it takes."""
    font = ImageFont.load_default(13)
    places, x, y = [], 6, 5
    for name in names:
        length = 20 + int(font.getlength(name)) + 14
        if x + length > width and x > 6:
            x, y = 6, y + 20
        places.append((x, y))
        x += length
    strip = Image.new("RGB", (width, y + 20), "white")
    draw = ImageDraw.Draw(strip)
    for name, rgb, (left, top) in zip(names, palette, places, strict=False):
        draw.rectangle([left, top, left + 14, top + 12], fill=tuple(rgb), outline="grey")
        draw.text((left + 20, top - 2), name, fill="black", font=font)
    return strip


def comparison(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], names: Sequence[str], palette: Palette
) -> Image.Image:
    """A table of pictures of one size, with a title above each column and the legend below."""
    width, height = rows[0][0].size
    gap, header = 4, 22
    total = (width + gap) * len(titles) - gap
    strip = legend(names, palette, total)
    sheet = Image.new("RGB", (total, header + (height + gap) * len(rows) + strip.height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * (width + gap) + 2, 3), title, fill="black", font=ImageFont.load_default(13))
        for row, pictures in enumerate(rows):
            sheet.paste(pictures[column].convert("RGB"), (column * (width + gap), header + row * (height + gap)))
    sheet.paste(strip, (0, sheet.height - strip.height))
    return sheet
