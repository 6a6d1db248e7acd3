"""`write_plots`: the plots of a comparison of methods: gains, time, classes, difficulty, curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from hf_segkd.evaluation.comparison_tables import Result

# Distinct for the colour-blind (Okabe and Ito).
BLUE, LIGHT_BLUE, ORANGE = "#0072b2", "#56b4e9", "#d55e00"
GREY, BLACK = "#8a8a8a", "#222222"
MOST_NUMBERED_CLASSES = 30
PANELS_IN_A_ROW = 4


def write_plots(
    folder: Path, baseline: Result, results: Sequence[Result], teacher: Result | None, split: str
) -> list[Path]:
    """Write the plots as PNG files beside the tables; the files.

    Args:
        folder: Folder to write to.
        baseline: The student alone.
        results: The methods, with their gains.
        teacher: The teacher, where it was scored.
        split: Name of the split that was scored.
    """
    figures = {
        "gains": gains(results, split),
        "time": scores_and_time(baseline, results, split),
        "classes": class_gains(baseline, results, split),
        "difficulty": gains_by_difficulty(baseline, results, split),
        "curves": curves(baseline, results, teacher),
    }
    files = []
    for name, figure in figures.items():
        files.append(folder / f"{name}.png")
        FigureCanvasAgg(figure)
        figure.savefig(files[-1], dpi=150, bbox_inches="tight")
    return files


def gains(results: Sequence[Result], split: str) -> Figure:
    """The gain of each method with its interval, the largest on top, grey where it has 0; a stroke for each seed."""
    ordered = best_first(results)[::-1]
    figure = Figure(figsize=(6.4, 1.1 + 0.34 * len(ordered)))
    axes = figure.subplots()
    axes.axvline(0, color=BLACK, linewidth=1)
    for y, result in enumerate(ordered):
        colour = GREY if not result.gain.is_certain else BLUE if result.gain.mean > 0 else ORANGE
        axes.plot([result.gain.low, result.gain.high], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
        seeds = result.gain.of_seeds
        if len(seeds) > 1:
            axes.plot(seeds, np.full(len(seeds), y), "|", color=BLACK, markersize=7, markeredgewidth=1)
        axes.plot(result.gain.mean, y, "o", color=colour, markersize=7)
    axes.set_yticks(range(len(ordered)), [result.name for result in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(
        f"gain in {split} mIoU over the student alone, points\ndot: mean, line: 95 % interval, strokes: seeds"
    )
    _plain(axes, "x")
    return figure


def scores_and_time(baseline: Result, results: Sequence[Result], split: str) -> Figure:
    """Scores, mean and range of the seeds, against the minutes of training."""
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()
    shown = [result for result in (baseline, *results) if result.minutes is not None]
    labels = []
    for result in shown:
        values, colour = result.percents("mean_iou"), BLACK if result is baseline else BLUE
        mean = float(np.mean(values))
        axes.plot([result.minutes] * 2, [min(values), max(values)], color=colour, linewidth=1, alpha=0.4)
        axes.plot(result.minutes, mean, "s" if result is baseline else "o", color=colour, markersize=6)
        labels.append((result.minutes, mean, result.name, colour))
    axes.axhline(np.mean(baseline.percents("mean_iou")), color=BLACK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("minutes of training, one run alone")
    axes.set_ylabel(f"{split} mIoU, %\ndot: mean, line: range of the seeds")
    if shown:
        least, most = min(x for x, *_ in labels), max(x for x, *_ in labels)
        pad = 0.06 * (most - least) or 0.05 * most
        axes.set_xlim(least - pad, most + pad)
    _plain(axes, "both")
    _label_at_the_right(axes, labels)
    return figure


def class_gains(baseline: Result, results: Sequence[Result], split: str) -> Figure:
    """What each method gained in each class; bold where the interval leaves 0 out. Classes from hard to easy."""
    names, difficulty = list(baseline.scores[0].classes), class_ious_of(baseline)
    order = [index for index in np.argsort(difficulty) if np.isfinite(difficulty[index])]
    ordered = best_first(results)
    values = np.array([[result.gain.of_classes[index] for index in order] for result in ordered])
    numbered = len(order) <= MOST_NUMBERED_CLASSES
    width = 2.2 + len(order) * (0.62 if numbered else 0.16)
    figure = Figure(figsize=(width, 1.7 + 0.36 * len(ordered)))
    axes = figure.subplots()
    image = axes.imshow(values[..., 0], cmap="PuOr", norm=CenteredNorm(), aspect="auto")
    if numbered:
        largest = np.nanmax(np.abs(values[..., 0])) or 1.0
        for row, column in np.ndindex(values.shape[:2]):
            mean, low, high = values[row, column]
            if np.isfinite(mean):
                certain = low > 0 or high < 0
                axes.text(
                    column,
                    row,
                    f"{mean:+.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    fontweight="bold" if certain else "normal",
                    color="white" if abs(mean) > 0.55 * largest else BLACK,
                )
    axes.set_yticks(range(len(ordered)), [result.name for result in ordered])
    ticks = [f"{names[index]} {difficulty[index]:.0f}" for index in order]
    axes.set_xticks(range(len(order)), ticks, rotation=45 if numbered else 90, ha="right" if numbered else "center")
    axes.tick_params(length=0, labelsize=8)
    axes.set_xlabel("class, and the IoU in % of the student alone")
    axes.set_title(
        f"gain in {split} IoU, points" + (" (bold: 95 % interval without 0)" if numbered else ""), fontsize=10
    )
    figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
    return figure


def gains_by_difficulty(baseline: Result, results: Sequence[Result], split: str) -> Figure:
    """The gain of each class against the IoU that the student alone has there, a panel for each method."""
    difficulty = class_ious_of(baseline)
    figure, panels = _panels(results)
    for axes, result in zip(panels, best_first(results), strict=True):
        mean, low, high = result.gain.of_classes.T
        known = np.isfinite(mean) & np.isfinite(difficulty)
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.vlines(difficulty[known], low[known], high[known], color=LIGHT_BLUE, linewidth=1)
        axes.plot(difficulty[known], mean[known], "o", color=BLUE, markersize=4)
        if known.sum() > 2 and np.ptp(difficulty[known]) > 0:
            slope, offset = np.polyfit(difficulty[known], mean[known], 1)
            ends = np.array([difficulty[known].min(), difficulty[known].max()])
            axes.plot(ends, slope * ends + offset, color=ORANGE, linewidth=1.5, linestyle="--")
        axes.set_title(result.name, fontsize=9)
    figure.supxlabel("IoU of the student alone in the class, %; line: 95 % interval; dashed: straight fit", fontsize=9)
    figure.supylabel(f"gain in {split} IoU, points", fontsize=9)
    return figure


def curves(baseline: Result, results: Sequence[Result], teacher: Result | None) -> Figure:
    """Validation scores in the course of training, mean and range of the seeds, a panel for each method."""
    score = None
    if teacher is not None and teacher.runs and teacher.runs[0].mean_iou is not None:
        score = teacher.runs[0].percent("mean_iou")
    figure, panels = _panels(results)
    for axes, result in zip(panels, best_first(results), strict=True):
        for side, colour in ((baseline, BLACK), (result, BLUE)):
            if (drawn := _mean_curve(side)) is not None:
                steps, scores = drawn
                axes.fill_between(steps, scores.min(0), scores.max(0), color=colour, alpha=0.2, linewidth=0)
                axes.plot(steps, scores.mean(0), color=colour, linewidth=1.4)
        if score is not None:
            axes.axhline(score, color=GREY, linewidth=1, linestyle=":")
        axes.set_title(result.name, fontsize=9, color=BLUE)
        axes.set_xlim(left=0)
    figure.supxlabel(
        "optimizer step; black: the student alone, dotted: the teacher, bands: range of the seeds", fontsize=9
    )
    figure.supylabel("validation mIoU, %", fontsize=9)
    return figure


def best_first(results: Sequence[Result]) -> list[Result]:
    """The methods by their gain."""
    return sorted(results, key=lambda result: -result.gain.mean)


def _panels(results: Sequence[Result]) -> tuple[Figure, list[Axes]]:
    """A panel for each method, with common axes."""
    columns = min(PANELS_IN_A_ROW, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(
        figsize=(max(5.6, 2.4 * columns), 0.7 + max(2.6 if rows == 1 else 0, 2.0 * rows)), layout="constrained"
    )
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for index, axes in enumerate(panels):
        axes.set_visible(index < len(results))
        axes.tick_params(labelbottom=index + columns >= len(results))
        _plain(axes, "both")
    return figure, list(panels[: len(results)])


def class_ious_of(result: Result) -> np.ndarray:
    """IoU of each class in percent, mean of the seeds; nan for one that is nowhere."""
    ious = [[entry["iou"] for entry in report.classes.values()] for report in result.scores]
    values = 100 * np.array(ious, dtype=float)  # None becomes nan
    known = np.isfinite(values).any(0)
    return np.where(known, np.nan_to_num(values).sum(0) / np.maximum(1, np.isfinite(values).sum(0)), np.nan)


def _mean_curve(result: Result) -> tuple[np.ndarray, np.ndarray] | None:
    """The steps that all seeds were scored at, and the scores (seeds, steps)."""
    found = [dict(points) for points in result.curves or [] if points]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    return (np.array(steps), np.array([[points[step] for step in steps] for points in found])) if steps else None


def _plain(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def _label_at_the_right(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Names beside the axes at the heights of their points (x, y, name, colour), moved apart, with lines to them."""
    low, high = axes.get_ylim()
    ordered = sorted(labels, key=lambda label: label[1])
    apart = 0.047
    heights = [(y - low) / (high - low) for _, y, _, _ in ordered]
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + apart)
    surplus = max(0.0, heights[-1] - 1.0) if heights else 0.0
    for index in range(len(heights) - 1, -1, -1):  # from the top down, only as far as needed
        ceiling = 1.0 if index == len(heights) - 1 else heights[index + 1] - apart
        heights[index] = min(heights[index], ceiling) if surplus else heights[index]
    for (x, y, name, colour), height in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5},
                **{"relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4},
            },
        )
