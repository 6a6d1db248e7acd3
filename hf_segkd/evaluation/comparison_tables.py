"""`Result`, `gains_over`, `markdown`, `write_tables`: the tables of a comparison of methods."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_segkd.evaluation.bootstrap import MOST_SEEDS, Gain, class_counts, paired_gain
from hf_segkd.evaluation.reports import METRICS, table, write_json
from hf_segkd.evaluation.run_report import RunReport


@dataclass
class Result:
    """What the runs of a method came to.

    Attributes:
        name: Title of its row.
        runs: Report of each seed's run, with the scores of the validation split.
        scores: Report of each seed on the split that is compared.
        counts: Confusion matrices of the images of that split, (seeds, n, k, k); None where no gain is asked for.
        step_seconds: Time of a step, measured alone; None where it was not.
        curves: Optimizer steps and mIoU on the validation split in the course of each run.
        weight_trials: Factor of the method's weight -> mIoU in percent on the validation split of its trial, None where
            training diverged; None where no weights were searched.
        weight_factor: The one that was chosen.
        gain: Over the baseline; None for teacher and baseline.
    """

    name: str
    runs: list[RunReport]
    scores: list[RunReport]
    counts: np.ndarray | None = None
    step_seconds: float | None = None
    curves: list[list[tuple[int, float]]] | None = None
    weight_trials: dict[float, float | None] | None = None
    weight_factor: float | None = None
    gain: Gain | None = None

    def percents(self, metric: str) -> list[float]:
        """A score of each seed in percent."""
        return [report.percent(metric) for report in self.scores]

    @property
    def steps(self) -> int | None:
        """Optimizer steps, the most of any seed; None where they are not known."""
        return max((run.steps for run in self.runs if run.steps is not None), default=None)

    @property
    def minutes(self) -> float | None:
        """Minutes that the steps take, at the time of a step."""
        return None if None in (self.step_seconds, self.steps) else self.step_seconds * self.steps / 60


def gains_over(baseline: Result, results: Sequence[Result]) -> None:
    """Give each result its gain over the baseline.

    Raises:
        ValueError: If a seed of a method has no run of the baseline, or the two were scored on other images.
    """
    plain = _by_seed(baseline)
    for result in results:
        ours = _by_seed(result)
        if missing := sorted(ours.keys() - plain.keys()):
            raise ValueError(
                f"{result.name} has seeds {missing} and the baseline has not: a gain is over the same student with the "
                "same seed, trained on the labels alone. Run the baseline with these seeds, or leave them out."
            )
        truth = [counts.sum(-1) for counts in (*ours.values(), *(plain[seed] for seed in ours))]
        if any(not np.array_equal(part, truth[0]) for part in truth):
            raise ValueError(
                f"{result.name} and the baseline were scored on other images or labels: pixels of the classes differ. "
                "Score both again."
            )
        sides = [np.stack([class_counts(side[seed]) for seed in ours]) for side in (ours, plain)]
        result.gain = paired_gain(*sides)


def _by_seed(result: Result) -> dict[int | None, np.ndarray]:
    assert result.counts is not None
    return {run.seed: counts for run, counts in zip(result.runs, result.counts, strict=True)}


def rows_of(results: Sequence[Result], baseline: Result, teacher: Result | None) -> list[dict[str, Any]]:
    """The numbers of each row, in percent, points, minutes and MiB; None where there is none."""
    of_teacher = None if teacher is None else teacher.percents("mean_iou")[0]
    rows = []
    for result in ([] if teacher is None else [teacher]) + [baseline, *results]:
        row: dict[str, Any] = {"name": result.name, "seeds": [run.seed for run in result.runs if run.seed is not None]}
        for metric in METRICS:
            row |= _mean_and_std(metric, result.percents(metric))
        row |= _mean_and_std("validation_mean_iou", [100 * run.mean_iou for run in result.runs if run.mean_iou])
        gain = result.gain
        row |= {
            "gain": None if gain is None else gain.mean,
            "gain_low": None if gain is None else gain.low,
            "gain_high": None if gain is None else gain.high,
            "gain_of_seeds": None if gain is None else gain.of_seeds,
            "seeds_needed": None if gain is None else gain.seeds_needed,
            "share_of_teacher": None
            if of_teacher is None or result is teacher
            else 100 * row["mean_iou_mean"] / of_teacher,
            "weight_factor": result.weight_factor,
            "steps": result.steps,
            "step_ms": None if result.step_seconds is None else 1000 * result.step_seconds,
            "minutes": result.minutes,
            "peak_mib": max((run.peak_memory / 2**20 for run in result.runs if run.peak_memory), default=None),
            "extra_parameters": max((run.loss_parameters or 0 for run in result.runs), default=None),
        }
        rows.append(row)
    return rows


def _mean_and_std(name: str, values: list[float]) -> dict[str, float | None]:
    return {
        f"{name}_mean": statistics.mean(values) if values else None,
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
    }


def markdown(rows: Sequence[dict[str, Any]], split: str, validation: str | None) -> str:
    """The rows as a Markdown table; without the validation split where it is the one that is scored."""
    columns = {
        "": lambda row: row["name"],
        f"{split} mIoU %": lambda row: _spread(row, "mean_iou"),
        "gain [95 %]": _gain,
        "mean class acc. %": lambda row: _spread(row, "mean_accuracy"),
        "pixel acc. %": lambda row: _spread(row, "overall_accuracy"),
        f"{validation} mIoU %": lambda row: _spread(row, "validation_mean_iou"),
        "of the teacher %": lambda row: _number(row["share_of_teacher"], 1),
        "weight times": lambda row: "" if row["weight_factor"] is None else f"{row['weight_factor']:g}",
        "steps": lambda row: _number(row["steps"], 0),
        "ms per step": lambda row: _number(row["step_ms"], 0),
        "minutes": lambda row: _number(row["minutes"], 1 if (row["minutes"] or 0) >= 1 else 2),
        "peak MiB": lambda row: _number(row["peak_mib"], 0),
        "extra parameters": lambda row: _parameters(row["extra_parameters"]),
    }
    if validation is None:
        del columns[f"{validation} mIoU %"]
    if all(row["weight_factor"] is None for row in rows):
        del columns["weight times"]
    return table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def _spread(row: dict[str, Any], name: str) -> str:
    mean, std = row[f"{name}_mean"], row[f"{name}_std"]
    return "" if mean is None else f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def _gain(row: dict[str, Any]) -> str:
    return "" if row["gain"] is None else f"{row['gain']:+.2f} [{row['gain_low']:+.2f}, {row['gain_high']:+.2f}]"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _parameters(count: int | None) -> str:
    return "" if not count else f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def verdict(results: Sequence[Result]) -> str:
    """Which gains are certain, and what it would take for the others."""
    better = [result.name for result in results if result.gain.low > 0]
    worse = [result.name for result in results if result.gain.high < 0]
    lines = [f"The interval of {len(better)} of {len(results)} methods lies above 0{_listed(better)}."]
    if worse:
        lines.append(f"That of {len(worse)} lies below 0, they did harm{_listed(worse)}.")
    if any(len(result.gain.of_seeds) == 1 for result in results):
        lines.append("With one seed the intervals are over images alone, and tell nothing of the spread over seeds.")
    for result in results:
        if result.gain.is_certain or len(result.gain.of_seeds) == 1:
            continue
        seeds, needed = len(result.gain.of_seeds), result.gain.seeds_needed
        if needed is not None:
            what = f"about {max(needed, seeds + 1)} seeds would leave 0 out, if mean and spread stay as they are"
        else:
            what = (
                f"not even {MOST_SEEDS} seeds would leave 0 out: it is next to nothing, or the split has too few images"
            )
        lines.append(f"{result.name}: {what}.")
    return "\n".join(f"- {line}" for line in lines)


def _listed(names: list[str]) -> str:
    return f": {', '.join(names)}" if names else ""


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The rows as CSV; several values in a cell are separated by blanks."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            cells = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in row.items()}
            writer.writerow(cells)


def write_tables(
    folder: Path, text: str, rows: list[dict[str, Any]], results: Sequence[Result], protocol: dict[str, Any]
) -> None:
    """Write comparison.md, comparison.csv and comparison.json; the last also has classes and trials of weights."""
    (folder / "comparison.md").write_text(text + "\n")
    write_csv(rows, folder / "comparison.csv")
    classes = {result.name: _classes(result) for result in results}
    trials = {
        result.name: {f"{factor:g}": score for factor, score in result.weight_trials.items()}
        for result in results
        if result.weight_trials is not None
    }
    content = {"protocol": protocol, "rows": rows, "classes": classes, "weight_trials": trials}
    write_json(content, folder / "comparison.json")


def _classes(result: Result) -> dict[str, dict[str, Any]]:
    """IoU of each class in percent, mean of the seeds, and what it gained."""
    found = {}
    for index, name in enumerate(result.scores[0].classes):
        ious = [
            100 * report.classes[name]["iou"] for report in result.scores if report.classes[name]["iou"] is not None
        ]
        found[name] = {"iou": statistics.mean(ious) if ious else None}
        if result.gain is not None:
            ends = [None if np.isnan(value) else float(value) for value in result.gain.of_classes[index]]
            found[name] |= dict(zip(("gain", "gain_low", "gain_high"), ends, strict=True))
    return found
