import json
from dataclasses import fields

import pytest
import torch
from card_reports import LABELS

from hf_segkd.evaluation.reports import evaluation_report, format_report, read_json, write_json
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.publishing.comparisons import METHOD
from hf_segkd.publishing.publication import PRIVATE

TRAINED = {
    "method": "kd",
    "method_kwargs": {"weight": 2.0},
    "class_map": None,
    "seed": 42,
    "steps": 3,
    "batch_size": 4,
    "num_processes": 1,
    "ema_decay": 0.0,
    "train_images": 12,
    "unlabelled_images": 0,
    "unlabelled_ratio": None,
    "unreadable_images": 0,
    "resumed_from_step": None,
}
# As training wrote it before there was a RunReport.
FILE = """{
  "dataset": "voc2012",
  "split": "val",
  "num_images": 10,
  "mean_iou": 0.6,
  "mean_accuracy": 0.75,
  "overall_accuracy": 0.75,
  "classes": {
    "road": {
      "iou": 0.6,
      "accuracy": 0.75
    },
    "car": {
      "iou": 0.6,
      "accuracy": 0.75
    },
    "tram": {
      "iou": null,
      "accuracy": null
    }
  },
  "confusion_matrix": [
    [
      3,
      1,
      0
    ],
    [
      1,
      3,
      0
    ],
    [
      0,
      0,
      0
    ]
  ],
  "method": "kd",
  "method_kwargs": {
    "weight": 2.0
  },
  "class_map": null,
  "seed": 42,
  "steps": 3,
  "batch_size": 4,
  "num_processes": 1,
  "ema_decay": 0.0,
  "train_images": 12,
  "unlabelled_images": 0,
  "unlabelled_ratio": null,
  "unreadable_images": 0,
  "resumed_from_step": null
}
"""


def evaluated(matrix):
    return evaluation_report(torch.tensor(matrix), LABELS, "val", 10)


@pytest.fixture
def report():
    return evaluated([[3, 1, 0], [1, 3, 0], [0, 0, 0]]).extended(**TRAINED)


def test_a_report_is_written_as_it_always_was(report, tmp_path):
    write_json(report.to_json(), tmp_path / "evaluation.json")
    assert (tmp_path / "evaluation.json").read_text() == FILE


def test_a_file_comes_back_as_it_was(tmp_path):
    (tmp_path / "evaluation.json").write_text(FILE)
    read = RunReport.from_json(read_json(tmp_path / "evaluation.json"))
    assert (read.mean_iou, read.steps, read.classes["tram"]["iou"]) == (0.6, 3, None)
    write_json(read.to_json(), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == FILE


def test_entries_of_other_versions_stay_in_their_place_and_those_that_are_missing_stay_out():
    entries = {"seed": 1, "of_a_later_version": [1], "dataset": "demo", "class_map": None}
    read = RunReport.from_json(entries)
    assert (read.seed, read.class_map, read.best_step, read.teacher) == (1, None, None, None)
    assert list(read.extended(steps=7, seed=2).to_json().items()) == [
        ("seed", 2),
        ("of_a_later_version", [1]),
        ("dataset", "demo"),
        ("class_map", None),
        ("steps", 7),
    ]
    assert read.to_json() == entries  # extended makes a copy


def test_an_entry_that_is_spelt_wrongly_is_refused(report):
    with pytest.raises(TypeError, match="A report has no step"):
        report.extended(step=3)


def test_images_without_any_label_have_no_scores_in_the_file_and_in_the_table(tmp_path):
    nothing = evaluated([[0, 0, 0]] * 3)
    assert [nothing.mean_iou, nothing.mean_accuracy, nothing.overall_accuracy] == [None] * 3
    write_json(nothing.to_json(), tmp_path / "evaluation.json")
    assert '"mean_iou": null' in (tmp_path / "evaluation.json").read_text()
    assert "mIoU                      -" in format_report(nothing)
    with pytest.raises(ValueError, match="no mean_iou: the images have no labelled pixel"):
        nothing.percent("mean_iou")


def test_a_score_that_an_earlier_version_wrote_as_nan_is_none():
    assert RunReport.from_json(json.loads('{"mean_iou": NaN, "seed": 3}')).to_json() == {"mean_iou": None, "seed": 3}


def test_no_file_holds_a_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json({"mean_iou": float("nan")}, tmp_path / "evaluation.json")
    assert not (tmp_path / "evaluation.json").exists()


def test_every_attribute_is_documented_and_what_is_compared_or_private_is_one():
    names = [entry.name for entry in fields(RunReport)]
    documented = [line.split(":")[0].strip() for line in RunReport.__doc__.splitlines() if line.startswith("        ")]
    assert [name for name in documented if name in names] == names
    assert {*METHOD, *PRIVATE} - {"labelled pixels of each class", "tiles"} <= set(names)


def test_a_report_is_read_by_key_as_its_file_is():
    report = RunReport(mean_iou=0.5, batch_size=4)
    assert (report["batch_size"], "steps" in report, report.get("steps")) == (4, False, None)
    assert dict(report) == report.to_json() == {"mean_iou": 0.5, "batch_size": 4}
    with pytest.raises(KeyError):
        report["steps"]
