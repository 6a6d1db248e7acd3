"""`evaluation_report`: the scores of a network as a report; `format_report`, `write_json`: as a table and as JSON."""

from __future__ import annotations

import contextlib
import json
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

import hf_segkd
from hf_segkd.data import LabelInfo
from hf_segkd.evaluation.metrics import scores_from_confusion_matrix
from hf_segkd.evaluation.run_report import RunReport

# What a run leaves beside the student that it saves: all arguments, and the scores.
ARGUMENTS_FILE = "training_args.json"
SCORES_FILE = "evaluation.json"
# The scores in a report, and what people call them.
METRICS = {"mean_iou": "mIoU", "mean_accuracy": "mean class accuracy", "overall_accuracy": "pixel accuracy"}


def evaluation_report(matrix: Tensor, labels: LabelInfo, split: str, num_images: int) -> RunReport:
    """The report of a confusion matrix, with the names of the classes."""
    scores = scores_from_confusion_matrix(matrix)
    classes = {
        name: {
            "iou": _or_none(scores["per_category_iou"][index]),
            "accuracy": _or_none(scores["per_category_accuracy"][index]),
        }
        for index, name in labels.id2label.items()
    }
    return RunReport(
        dataset=labels.name,
        split=split,
        num_images=num_images,
        mean_iou=_or_none(scores["mean_iou"]),
        mean_accuracy=_or_none(scores["mean_accuracy"]),
        overall_accuracy=_or_none(scores["overall_accuracy"]),
        classes=classes,
        confusion_matrix=matrix.tolist(),
    )


def _or_none(value: float) -> float | None:
    value = float(value)
    return None if value != value else value


def format_report(report: RunReport) -> str:
    """The report as a table of percentages."""

    def percent(value: float | None) -> str:
        return "     -" if value is None else f"{100 * value:6.2f}"

    width = max(len(name) for name in (*report.classes, *METRICS.values()))
    lines = [f"{report.dataset} {report.split}, {report.num_images} images, %"]
    lines.append(f"{'class':{width}}     IoU  accuracy")
    for name, scores in report.classes.items():
        lines.append(f"{name:{width}}  {percent(scores['iou'])}    {percent(scores['accuracy'])}")
    lines.append("")
    for key, name in METRICS.items():
        lines.append(f"{name:{width}}  {percent(getattr(report, key))}")
    return "\n".join(lines)


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write values for people and programs to read.

    Raises:
        ValueError: If they contain NaN or infinity, which JSON does not have.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text())


def mean_and_std(values: Sequence[float], digits: int = 2) -> str:
    """`mean +- std` (sample standard deviation), or only the value when there is one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Package -> version, for those that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def training_versions() -> dict[str, str]:
    """Versions of the packages that a network is trained with."""
    own = {"Python": platform.python_version(), "hf_segkd": hf_segkd.__version__}
    return own | versions(("torch", "torchvision", "transformers", "accelerate", "datasets"))
