"""`check_comparable`: checks that scores may stand side by side; `gain_in_words`: what distillation gained."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from hf_segkd.evaluation.argument_roles import OnCard, role_of
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.networks.tiles import tile_and_overlap
from hf_segkd.publishing.privacy import public, shareable

# What two reports must have in common; what one of them lacks is not compared.
PROTOCOL = ("dataset", "split", "num_images", "classes", "labelled pixels of each class", "tiles")
BUDGET = (*PROTOCOL, "network", "initial_weights", "steps", "batch_size", "train_images", "ema_decay")
# Unlabelled images belong to the method: the baseline, which learns only from labels, has no use for them. The card
# says that the others had them.
METHOD = (*BUDGET, "unlabelled_images", "unlabelled_ratio", "method", "method_kwargs", "class_map")


def check_comparable(
    reference: RunReport, *, runs: Sequence[RunReport], baseline_runs: Sequence[RunReport], teacher: RunReport | None
) -> None:
    """Make sure that reports can stand beside the one of a student.

    Args:
        reference: Report of the student. Like those of runs it may have the network's configuration and the
            training's settings.
        runs: Same training, other seeds.
        baseline_runs: Same student and budget, labels only.
        teacher: Same evaluation.

    Raises:
        ValueError: If a report has no mIoU, or is of another data set, split, number of images, classes or truth
            (pixels of each class); of students also if it is of another network, other weights at the start, another
            number of steps, batch size, number of training images or average of the weights; of runs also if it is of
            another method, class map or other unlabelled images; if a seed occurs twice; or if a baseline does not say
            that it was trained only on the labels.
    """
    teachers = [] if teacher is None else [teacher]
    for what, reports, keys in (
        ("The published network", [reference], ()),
        ("A run", runs, METHOD),
        ("A baseline run", baseline_runs, BUDGET),
        ("The teacher", teachers, PROTOCOL),
    ):
        for report in reports:
            if report.mean_iou is None:
                raise ValueError(f"{what} has no mIoU: its images have no labelled pixel. Evaluate on others.")
            _refuse_difference(what, report, reference, keys)
        seeds = [report.seed for report in reports if report.seed is not None]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{what} occurs twice: the seeds are {seeds}. Give each run once.")
    for report in baseline_runs:
        if report.method is None:
            raise ValueError(
                "How a baseline run was trained is not recorded: its report has no method, and a baseline learns from "
                "labels alone. Train it with --method none, or leave that report out."
            )
        if report.method != "none":
            raise ValueError(f"A baseline run has the method {report.method!r}; a baseline learns from labels alone.")


def _refuse_difference(what: str, report: RunReport, reference: RunReport, keys: Sequence[str]) -> None:
    theirs, ours = _told(report, keys), _told(reference, keys)
    for key in theirs:
        if key in ours and theirs[key] != ours[key]:
            raise ValueError(
                f"{what} has {key} = {str(theirs[key])[:200]}, the published network {str(ours[key])[:200]}. Scores "
                "stand side by side only under one protocol, and a gain needs one budget: evaluate or train again, or "
                "leave that report out."
            )


def _told(report: RunReport, keys: Sequence[str]) -> dict[str, Any]:
    """The entries of a report that are known."""
    matrix = report.confusion_matrix  # its rows are the truth, which no network can change
    pixels = None if matrix is None else [sum(row) for row in matrix]
    values = report.to_json() | {"classes": list(report.classes), "labelled pixels of each class": pixels}
    values["tiles"] = _tiles(report)
    told = {key: values[key] for key in keys if values.get(key) is not None}
    return told | {f"{name} of the network": value for name, value in told.pop("network", {}).items()}


def _tiles(report: RunReport) -> str:
    """How the network saw the images: an evaluation has it in its data, a training run in its settings."""
    settings, data = report.settings or {}, report.data or {}
    tile = data.get("tile") or settings.get("eval_tile")
    if not tile:
        return "whole images"
    (height, width), overlaps = tile_and_overlap(tile, data.get("overlap") or settings.get("eval_overlap"))
    return f"tiles of {height} x {width} that overlap by {overlaps[0]} x {overlaps[1]}"


def differences_in_words(reference: RunReport, *, runs: Sequence[RunReport], baseline_runs: Sequence[RunReport]) -> str:
    """The training settings in which runs differ, other than method and seed; empty where they do not.

    A setting that one side lacks is not compared; where all are unknown, the text says so.
    """
    ours, others, silent = _training_settings(reference), {}, 0
    for what, reports, apart in (("other seeds", runs, None), ("labels alone", baseline_runs, OnCard.OF_THE_METHOD)):
        for report in reports:
            if report == reference:  # is one of its runs
                continue
            theirs = _training_settings(report)
            silent += not (ours and theirs)
            for name in theirs.keys() & ours.keys():
                if role_of(name).on_card is not apart and theirs[name] != ours[name]:
                    others.setdefault(name, {})[f"{what} {theirs[name]}"] = None  # each once, in order
    sentences = []
    if others:
        named = "; ".join(f"`{name}` {ours[name]}, {', '.join(others[name])}" for name in ours if name in others)
        sentences.append(f"The runs differ in more than method and seed, and so may their scores: {named}.")
    if silent:
        sentences.append(f"Whether the training settings were the same is not recorded for {silent} of the runs.")
    return " ".join(sentences)


def _training_settings(report: RunReport) -> dict[str, str]:
    settings = public(report.settings or {})
    if settings and report.teacher:  # stored beside them; a baseline has none
        settings["teacher"] = shareable(report.teacher)
    compared = (OnCard.COMPARED, OnCard.OF_THE_METHOD)
    return {name: f"`{json.dumps(value)}`" for name, value in settings.items() if role_of(name).on_card in compared}


def gain_in_words(runs: Sequence[RunReport], baseline_runs: Sequence[RunReport]) -> str:
    """A sentence on what runs gained in mIoU over the baseline.

    Runs are paired by seed where every run has its partner. Where one has none, the gain is the difference of the means
    of all runs, because to leave some out would be to choose; the pairs that exist are given beside it.
    """
    if not baseline_runs:
        return "There is no undistilled baseline under the same protocol, and so no gain is claimed."
    ours, plain = _by_seed(runs), _by_seed(baseline_runs)
    gains = {seed: ours[seed] - plain[seed] for seed in sorted(ours.keys() & plain.keys())}
    pairs = ", ".join(f"seed {seed}: {points:+.2f}" for seed, points in gains.items())
    spread = statistics.stdev(gains.values()) if len(gains) > 1 else None
    # If no seed is left over, this is also the mean of the pairs.
    gain = statistics.mean(map(_points, runs)) - statistics.mean(map(_points, baseline_runs))
    points = f"{gain:+.2f}"
    if not gains:
        how = "the difference of the means; no seed is common to both, so its spread is not known"
    elif len(gains) < max(len(runs), len(baseline_runs)):
        how = (
            f"the difference of the means of all runs, whose seeds are not the same: {_seeds(runs)}, labels alone "
            f"{_seeds(baseline_runs)}; of those in common {pairs}"
        )
    elif spread is None:
        how = f"{pairs}; with one pair its spread is not known"
    else:
        how, points = pairs, f"{gain:+.2f} ± {spread:.2f}"
    verdict = ""
    if gain <= 0:
        verdict = " Distillation did not help here."
    elif gains and statistics.mean(gains.values()) <= 0:
        verdict = " The seeds in common show no gain: it may be chance."
    elif spread is not None and gain <= spread:
        verdict = " The gain is within its spread: it may be chance."
    return f"Gain in mIoU over the same student trained on the labels alone: **{points}** points ({how}).{verdict}"


def _seeds(reports: Sequence[RunReport]) -> str:
    return ", ".join("unknown" if report.seed is None else str(report.seed) for report in reports)


def _by_seed(reports: Sequence[RunReport]) -> dict[int, float]:
    return {report.seed: _points(report) for report in reports if report.seed is not None}


def _points(report: RunReport) -> float:
    return report.percent("mean_iou")
