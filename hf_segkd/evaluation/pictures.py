"""`comparison`, `overlay`, `per_class_chart`: pictures of segmentations and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

Palette = Sequence[tuple[int, int, int]]
# Colours of the networks in a chart, the last for the last; distinct for the colour-blind and in grey (Okabe and Ito).
BAR_COLOURS = ("#999999", "#e69f00", "#0072b2")


def colour(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Class ids (h, w) as colours (h, w, 3) uint8; ids beyond the palette, such as 255, are white."""
    table = np.full((max(256, len(palette) + 1), 3), 255, dtype=np.uint8)
    table[: len(palette)] = np.asarray(palette, dtype=np.uint8)
    return table[mask if len(palette) < 256 else np.minimum(mask, len(palette))]


def overlay(image: Image.Image, mask: np.ndarray, palette: Palette, opacity: float = 0.6) -> Image.Image:
    """The image with its classes (h, w) laid over it; `opacity` 1 hides the image, 0 the classes."""
    return Image.blend(image.convert("RGB"), Image.fromarray(colour(mask, palette)), opacity)


def legend(names: Sequence[str], palette: Palette, width: int) -> Image.Image:
    """A strip of `width` pixels that names the colours, as many lines high as it takes."""
    font = ImageFont.load_default(13)
    names = [_one_line(name) for name in names]
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
    """A table of pictures of one size, with a title above each column and the legend below.

    Args:
        rows: The pictures, row by row.
        titles: One title for each column.
        names: Names of the classes.
        palette: Their RGB colours, 0-255.
    """
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


def per_class_chart(names: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> Image.Image:
    """Bars that compare the IoU of each class between up to three networks; many classes stand in two columns.

    Args:
        names: Names of the classes.
        series: What a network is called -> its IoU of each class, 0..1; None leaves a gap.
    """
    columns = 1 if len(names) <= 30 else 2
    rows = -(-len(names) // columns)
    bar = 0.14 if columns == 1 else 0.08  # inches
    figure = Figure(figsize=(9, rows * (len(series) + 0.8) * bar + 1), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # not pyplot's, which keeps figures and may need a screen
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for column, axis in enumerate(axes):
        part = slice(column * rows, (column + 1) * rows)
        _draw_bars(axis, names[part], {label: values[part] for label, values in series.items()}, rows)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(series), frameon=False)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw_bars(axis: Axes, names: Sequence[str], series: Mapping[str, Sequence[float | None]], rows: int) -> None:
    """Draw one column of the chart, with room for this many rows."""
    thickness = 1 / (len(series) + 0.8)
    places = np.arange(len(names))
    colours = BAR_COLOURS[-len(series) :]
    for index, (label, values) in enumerate(series.items()):
        percent = [np.nan if value is None else 100 * value for value in values]
        offset = (index - (len(series) - 1) / 2) * thickness
        axis.barh(places + offset, percent, thickness, label=label, color=colours[index])
    shown = [name if len(name) <= 28 else name[:27] + "…" for name in map(_one_line, names)]
    axis.set_yticks(places, shown, parse_math=False, fontsize=9)
    axis.set_ylim(rows - 0.4, -0.6)  # the first class at the top
    axis.set_xlim(0, 100)
    axis.set_xlabel("IoU %")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.4)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _one_line(text: str) -> str:
    return " ".join(text.split())
