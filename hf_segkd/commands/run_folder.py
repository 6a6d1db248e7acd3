"""`run_report`, `scores`, `read_exports`: read what training, evaluation and export left in a run's folder."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from hf_segkd.evaluation.reports import ARGUMENTS_FILE, SCORES_FILE, read_json
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.export import REPORT as EXPORT_REPORT
from hf_segkd.export import SNIPPET
from hf_segkd.networks.class_names import CLASS_NAMES, config_values
from hf_segkd.publishing.publication import EXPORTS, weights_sha256


def run_report(folder: Path, evaluation: str) -> RunReport:
    """The scores in the folder of a run that others are compared with, and how it was trained.

    Raises:
        ValueError: If the file is not there, or nothing in the folder names the method: a distilled student must not
            pass for one trained only on the labels.
    """
    report = with_training(folder, scores(folder, evaluation))
    if report.method is None:
        raise ValueError(
            f"Nothing in {folder} says how the network was trained: there is no {ARGUMENTS_FILE} with a method, and "
            "the scores name none. Give a run's folder as training leaves it."
        )
    return report


def scores(folder: Path, evaluation: str) -> RunReport:
    """The scores in any network's folder, with what training wrote beside them, if it was trained here.

    `trained_on` is the data set of the training, which may differ from that of the scores; None where it is not
    recorded.

    Raises:
        ValueError: If the file is not there.
    """
    training, file = folder / SCORES_FILE, folder / evaluation
    if not file.is_file():
        # Not the name of training's file, which holds more than scores and must stay.
        name = "val.json" if evaluation == SCORES_FILE else evaluation
        raise ValueError(
            f"There is no {evaluation} in {folder}. Score the network with `hf-segkd evaluate --model {folder} "
            f"--output {folder / name}` and the flags of its data set, and publish with `--evaluation {name}`."
        )
    report = RunReport.from_json(read_json(training)) if training.is_file() else RunReport()
    # Scores that name no method come from the evaluation command, which knows nothing of the training.
    trained_on = None if report.method is None else report.dataset
    return RunReport.from_json({**report.to_json(), "trained_on": trained_on, **read_json(file)})


def with_training(folder: Path, report: RunReport) -> RunReport:
    """A report with the network, and with method and seed from the folder's training arguments where it lacks them.

    Without a method it is not known how the network was trained.
    """
    settings = training_settings(folder)
    told = {name: settings[name] for name in ("method", "method_kwargs", "seed") if name in settings}
    report = RunReport.from_json(told | report.to_json())
    return report.extended(settings=settings, network=network_configuration(folder))


def training_settings(folder: Path) -> dict[str, Any]:
    """The training arguments in a run's folder; empty where there are none."""
    file = folder / ARGUMENTS_FILE
    return read_json(file) if file.is_file() else {}


def network_configuration(folder: Path) -> dict[str, Any]:
    """`config_values` of the network in a folder, without its classes, which reports compare."""
    file = folder / "config.json"
    return config_values(read_json(file), without=CLASS_NAMES) if file.is_file() else {}


def read_exports(folder: Path) -> dict[str, Any] | None:
    """What the export command left in the network's folder, all formats together.

    Raises:
        ValueError: If an export was made from other weights than the folder's, or does not name its weights.
    """
    reports = _export_reports(folder)
    if not reports:
        return None
    weights = weights_sha256(folder)
    for name, report in reports.items():
        if report.get("weights_sha256") is None:
            raise ValueError(
                f"{folder / name} does not say which weights it was made from. Export again, or remove it."
            )
        if report["weights_sha256"] != weights:
            raise ValueError(
                f"{folder / name} was exported from other weights than {folder} holds now. Export again, or remove it."
            )
    found = [_with_folder(report, name) for name, report in reports.items()]
    latencies = [report["latency"] for report in found if report["latency"] is not None]
    return {
        "exports": [export for report in found for export in report["exports"]],
        # Times of one run stand beside each other; of several runs the one with most runtimes.
        "latency": max(latencies, key=lambda latency: len(latency["rows"]), default=None),
        "versions": found[0]["versions"],
    }


def copy_exports(folder: Path, publication: Path) -> None:
    """Copy the files that the export command wrote, and no others that lie beside them."""
    for name, report in _export_reports(folder).items():
        (publication / name).mkdir()
        for file in [file for export in report["exports"] for file in _files(export)] + [EXPORT_REPORT]:
            target = publication / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name / file, target)
        if (folder / name / SNIPPET).is_file():  # only ONNX files have one
            shutil.copy(folder / name / SNIPPET, publication / name / SNIPPET)


def _export_reports(folder: Path) -> dict[str, dict[str, Any]]:
    files = {name: folder / name / EXPORT_REPORT for name in EXPORTS}
    reports = {name: read_json(file) for name, file in files.items() if file.is_file()}
    for name, report in reports.items():
        for export in report["exports"]:
            for file in [export["file"], *_files(export)]:  # the folder may be somebody else's
                parts = PurePosixPath(file).parts
                if not parts or ".." in parts or "\\" in file or PurePosixPath(file).is_absolute():
                    raise ValueError(f"{files[name]} names the file {file!r}, which is not beside it.")
                if not (folder / name / file).resolve().is_relative_to((folder / name).resolve()):
                    raise ValueError(f"{files[name]} names the file {file!r}, which is a link to another place.")
    return reports


def _files(export: dict[str, Any]) -> list[str]:
    """All files of an export; reports of earlier versions name the one."""
    return export.get("files", [export["file"]])


def _with_folder(report: dict[str, Any], folder: str) -> dict[str, Any]:
    exports = [export | {"file": f"{folder}/{export['file']}"} for export in report["exports"]]
    return report | {"exports": exports}
