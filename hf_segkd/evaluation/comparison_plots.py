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

# Distinct for the colour-blind and in grey (Okabe and Ito); lines of one colour differ in their dashes.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
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
    """The gain of each method with its interval, the largest on top; a small mark for each seed."""
    ordered = sorted(results, key=lambda result: result.gain.mean)
    figure = Figure(figsize=(6.4, 1.1 + 0.34 * len(ordered)))
    axes = figure.subplots()
    axes.axvline(0, color=BLACK, linewidth=1)
    for y, result in enumerate(ordered):
        colour = COLOURS[0] if result.gain.is_certain else GREY
        axes.plot([result.gain.low, result.gain.high], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
        seeds = result.gain.of_seeds
        if len(seeds) > 1:
            axes.plot(seeds, np.full(len(seeds), y), "|", color=BLACK, markersize=7, markeredgewidth=1)
        axes.plot(result.gain.mean, y, "o", color=colour, markersize=7)
    axes.set_yticks(range(len(ordered)), [result.name for result in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(f"gain in {split} mIoU over the student alone, points (dot: mean, line: 95 %, strokes: seeds)")
    _plain(axes, "x")
    return figure


def scores_and_time(baseline: Result, results: Sequence[Result], split: str) -> Figure:
    """Scores, mean and range of the seeds, against the minutes of training."""
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()
    shown = [result for result in (baseline, *results) if result.minutes is not None]
    labels = []
    for result in shown:
        values, colour = result.percents("mean_iou"), BLACK if result is baseline else COLOURS[0]
        mean = float(np.mean(values))
        axes.plot([result.minutes] * 2, [min(values), max(values)], color=colour, linewidth=1, alpha=0.6)
        axes.plot(result.minutes, mean, "s" if result is baseline else "o", color=colour, markersize=6)
        labels.append((result.minutes, mean, result.name, colour))
    axes.axhline(np.mean(baseline.percents("mean_iou")), color=BLACK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("minutes of training, one run alone")
    axes.set_ylabel(f"{split} mIoU, % (dot: mean, line: range of the seeds)")
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
    ordered = sorted(results, key=lambda result: -result.gain.mean)
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
                    color="white" if abs(mean) > 0.65 * largest else BLACK,
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
    columns = min(PANELS_IN_A_ROW, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(max(4.2, 2.4 * columns), 0.6 + 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, result in zip(panels, results, strict=False):
        mean, low, high = result.gain.of_classes.T
        known = np.isfinite(mean) & np.isfinite(difficulty)
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.vlines(difficulty[known], low[known], high[known], color=COLOURS[4], linewidth=1)
        axes.plot(difficulty[known], mean[known], "o", color=COLOURS[0], markersize=4)
        if known.sum() > 2 and np.ptp(difficulty[known]) > 0:
            slope, offset = np.polyfit(difficulty[known], mean[known], 1)
            ends = np.array([difficulty[known].min(), difficulty[known].max()])
            axes.plot(ends, slope * ends + offset, color=COLOURS[5], linewidth=1.5, linestyle=DASHES[1])
        axes.set_title(result.name, fontsize=9)
        _plain(axes, "both")
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    figure.supxlabel("IoU of the student alone in the class, %", fontsize=10)
    figure.supylabel(f"gain in {split} IoU, points", fontsize=10)
    return figure


def curves(baseline: Result, results: Sequence[Result], teacher: Result | None) -> Figure:
    """Scores on the validation split in the course of training, mean of the seeds; the baseline's with its range."""
    figure = Figure(figsize=(7.0, 4.4))
    axes = figure.subplots()
    labels = []
    for index, result in enumerate((baseline, *results)):
        drawn = _mean_curve(result)
        if drawn is None:
            continue
        steps, scores = drawn
        colour = BLACK if result is baseline else COLOURS[(index - 1) % len(COLOURS)]
        dashes = "-" if result is baseline else DASHES[(index - 1) // len(COLOURS) % len(DASHES)]
        if result is baseline and len(scores) > 1:
            axes.fill_between(steps, scores.min(0), scores.max(0), color=GREY, alpha=0.3, linewidth=0)
        mean = scores.mean(0)
        axes.plot(steps, mean, color=colour, linestyle=dashes, linewidth=2.2 if result is baseline else 1.3)
        labels.append((steps[-1], mean[-1], result.name, colour))
    if teacher is not None and teacher.runs and teacher.runs[0].mean_iou is not None:
        score = teacher.runs[0].percent("mean_iou")
        axes.axhline(score, color=GREY, linewidth=1, linestyle=":")
        axes.annotate("teacher", (0.01, score), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color=GREY)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("validation mIoU, % (mean; band: the student alone)")
    axes.set_xlim(left=0)
    _plain(axes, "both")
    _label_at_the_right(axes, labels)
    return figure


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
    """Names beside the axes at the heights of their points (x, y, name, colour), moved apart, with thin lines to them."""
    low, high = axes.get_ylim()
    ordered = sorted(labels, key=lambda label: label[1])
    apart = 0.048 if axes.figure.get_figheight() < 4.3 else 0.045
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
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 0, "shrinkB": 4},
        )
