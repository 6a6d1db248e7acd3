import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from hf_segkd.evaluation import comparison_plots
from hf_segkd.evaluation.comparison_tables import Result, gains_over, markdown, rows_of, verdict, write_tables
from hf_segkd.evaluation.run_report import RunReport

CLASSES = ("road", "car", "tram")


def counts(right):
    """Two images, 10 pixels of each of two classes, so many of which are right; nothing is a tram."""
    matrix = np.zeros((2, 3, 3), dtype=int)
    matrix[:, 0, 0], matrix[:, 0, 1] = right, 10 - right
    matrix[:, 1, 1], matrix[:, 1, 0] = right, 10 - right
    return matrix


def result(name, rights, step_seconds=0.5, steps=60, curve=True, **entries):
    """A run for each seed; of 20 pixels each class has `right` of 10 twice, so its IoU is right / (20 - right)."""
    runs, scores = [], []
    for seed, right in enumerate(rights):
        iou = right / (20 - right)
        classes = {
            **{n: {"iou": iou, "accuracy": right / 10} for n in CLASSES[:2]},
            "tram": {"iou": None, "accuracy": None},
        }
        values = {"mean_iou": iou, "mean_accuracy": right / 10, "overall_accuracy": right / 10, "classes": classes}
        scores.append(RunReport(dataset="demo", split="test", num_images=2, **values))
        runs.append(scores[-1].extended(split="val", seed=seed, steps=steps, batch_size=8, **entries))
    curves = [[(30, 100 * run.mean_iou - 1), (60, 100 * run.mean_iou)] if curve else [] for run in runs]
    return Result(name, runs, scores, np.stack([counts(right) for right in rights]), step_seconds, curves)


@pytest.fixture
def study():
    baseline = result("student alone", (5, 5), peak_memory=2**30, loss_parameters=0)
    better = result("cwd", (6, 6), 0.75, 40, peak_memory=2**31, loss_parameters=0)
    unsure = result("hint", (6, 5), loss_parameters=1_240_000)
    worse = result("sp", (4, 4), loss_parameters=2_500)
    teacher = result("teacher", (8,), None)
    gains_over(baseline, [better, unsure, worse])
    return baseline, [better, unsure, worse], teacher


def test_rows_have_the_numbers_of_the_runs(study):
    baseline, results, teacher = study
    of_teacher, alone, cwd, hint, _ = rows_of(results, baseline, teacher)
    assert (of_teacher["name"], of_teacher["gain"], of_teacher["share_of_teacher"]) == ("teacher", None, None)
    assert alone["mean_iou_mean"] == pytest.approx(100 / 3)
    assert alone["share_of_teacher"] == pytest.approx(50)  # 1/3 of 2/3
    assert cwd["gain"] == pytest.approx(100 * (6 / 14 - 5 / 15))
    assert (cwd["gain_low"], cwd["gain_high"]) == (pytest.approx(cwd["gain"]), pytest.approx(cwd["gain"]))
    assert hint["gain_of_seeds"] == pytest.approx([100 * (6 / 14 - 5 / 15), 0])
    assert hint["mean_iou_std"] == pytest.approx(100 * (6 / 14 - 5 / 15) / np.sqrt(2))
    assert (cwd["steps"], cwd["step_ms"], cwd["minutes"], cwd["peak_mib"]) == (40, 750, 0.5, 2048)


def test_the_markdown_shows_each_number_once_and_leaves_out_what_there_is_not(study):
    baseline, results, teacher = study
    lines = markdown(rows_of(results, baseline, teacher), "test", "val").splitlines()
    cells = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for row in (line.split("|") for line in lines[2:])}
    assert cells["teacher"][:2] == ["66.67", ""]
    assert cells["cwd"] == [
        *("42.86 ± 0.00", "+9.52 [+9.52, +9.52]", "60.00 ± 0.00", "60.00 ± 0.00", "42.86 ± 0.00", "64.3"),
        *("40", "750", "0.50", "2048", ""),
    ]
    assert (cells["hint"][-1], cells["sp"][-1]) == ("1.24 M", "2.5 k")
    assert "val mIoU" in lines[0]
    assert "mIoU" not in markdown(rows_of(results, baseline, teacher), "val", None).splitlines()[0].partition("gain")[2]


def test_the_verdict_counts_gains_and_harm_and_says_what_is_missing_for_the_rest(study):
    _, results, _ = study
    text = verdict(results)
    assert "of 1 of 3 methods lies above 0: cwd." in text
    assert "1 lies below 0, they did harm: sp." in text
    assert f"hint: about {results[1].gain.seeds_needed} seeds would leave 0 out" in text
    assert 2 < results[1].gain.seeds_needed < 30
    results[1].gain = replace(results[1].gain, seeds_needed=None)
    assert "hint: not even 1000 seeds would leave 0 out" in verdict(results)
    one = result("kd", (5,))
    gains_over(result("student alone", (5,)), [one])
    assert "With one seed the intervals are over images alone" in verdict([one])
    assert "With one seed" not in text


def test_the_files_hold_the_rows_and_the_classes(study, tmp_path):
    baseline, results, teacher = study
    rows = rows_of(results, baseline, teacher)
    write_tables(tmp_path, "text", rows, [baseline, *results], {"equal": "steps"})
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["rows"] == rows
    assert written["classes"]["cwd"]["car"]["gain"] == pytest.approx(100 * (6 / 14 - 5 / 15))
    assert written["classes"]["cwd"]["tram"] == {"iou": None, "gain": None, "gain_low": None, "gain_high": None}
    with (tmp_path / "comparison.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == ["teacher", "student alone", "cwd", "hint", "sp"]
    assert (table[2]["seeds"], float(table[2]["gain"])) == ("0 1", rows[2]["gain"])


def test_a_gain_without_a_baseline_of_its_seed_or_on_other_images_is_refused():
    with pytest.raises(ValueError, match=r"cwd has seeds \[1\] and the baseline has not"):
        gains_over(result("student alone", (5,)), [result("cwd", (6, 6))])
    other = result("cwd", (6,))
    other.counts[:, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="scored on other images or labels"):
        gains_over(result("student alone", (5,)), [other])


def test_plots_show_the_best_first_and_mark_what_is_certain(study):
    baseline, results, teacher = study
    (axes,) = comparison_plots.gains(results, "test").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sp", "hint", "cwd"]  # from below
    colours = [line.get_color() for line in axes.lines if line.get_marker() == "o"]
    assert colours == [comparison_plots.ORANGE, comparison_plots.GREY, comparison_plots.BLUE]
    classes = comparison_plots.class_gains(baseline, results, "test").axes[0]
    assert [tick.get_text() for tick in classes.get_xticklabels()] == ["road 33", "car 33"]  # no tram anywhere
    assert [(text.get_text(), text.get_fontweight()) for text in classes.texts[:3]] == [
        ("+9.5", "bold"),
        ("+9.5", "bold"),
        ("+4.8", "normal"),
    ]
    time = comparison_plots.scores_and_time(baseline, results, "test").axes[0]
    dots = {tuple(np.ravel(line.get_xydata()).round(2)) for line in time.lines if line.get_marker() in "so"}
    assert (0.5, 33.33) in dots
    assert (0.5, 42.86) in dots
    assert sorted(text.get_text() for text in time.texts) == ["cwd", "hint", "sp", "student alone"]
    curves = comparison_plots.curves(baseline, results, teacher)
    assert [axes.get_title() for axes in curves.axes] == ["cwd", "hint", "sp"]
    assert curves.axes[0].lines[1].get_ydata() == pytest.approx([100 * 6 / 14 - 1, 100 * 6 / 14])


def test_plots_are_written_also_of_one_method_and_seed_without_curves(tmp_path):
    baseline, one = result("student alone", (5,), curve=False), result("kd", (6,), curve=False)
    gains_over(baseline, [one])
    files = comparison_plots.write_plots(tmp_path, baseline, [one], None, "test")
    assert [file.name for file in files] == ["gains.png", "time.png", "classes.png", "difficulty.png", "curves.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
