import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from tiny_commands import BASE, STUDENT
from tiny_runs import network, processor

from hf_segkd.commands import compare, evaluate, train
from hf_segkd.commands.comparison_plan import OF_TRIAL, Method, Plan
from hf_segkd.commands.study import alone_in
from hf_segkd.evaluation.image_counts import read_image_counts
from hf_segkd.publishing.publication import CELL_WIDTH


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A recipe with a teacher of random weights."""
    folder = tmp_path_factory.mktemp("compare")
    network(width=12).save_pretrained(folder / "teacher")
    processor().save_pretrained(folder / "teacher")
    values = {**BASE, "student_config": STUDENT, "teacher": str(folder / "teacher"), "output_dir": str(folder / "all")}
    (folder / "compare.yaml").write_text(json.dumps({**values, "methods": ["hint"], "seeds": [1]}))
    return folder


@pytest.fixture
def runs_here(monkeypatch):
    """Runs are made in this process; the names of those that are not done, in their order."""
    made = []

    def run_all(runs, jobs, table=None, threads=None):
        for run in runs:
            if not run.is_done:
                made.append(run.output_dir.name)
                train.main(["--output_dir", str(run.output_dir), *run.flags])

    monkeypatch.setattr(compare, "run_all", run_all)
    return made


def test_a_comparison_trains_scores_and_writes_and_goes_on_where_it_was(config, runs_here, capsys, monkeypatch):
    monkeypatch.setattr("hf_segkd.commands.comparison_plan.OF_TRIAL", {**OF_TRIAL, "max_steps": 2})
    rows = compare.main(["--config", str(config / "compare.yaml")])
    assert runs_here == ["none-seed1", "none", "hint", "hint-seed1"]
    assert [row["name"] for row in rows] == ["teacher", "student alone", "hint"]
    run = json.loads((config / "all" / "hint-seed1" / "evaluation.json").read_text())
    test = json.loads((config / "all" / "hint-seed1" / "test.json").read_text())
    assert (run["seed"], run["steps"], run["split"], test["split"]) == (1, 2, "val", "test")
    assert run["step_seconds"] > 0
    assert run["peak_memory"] > 2**25
    assert rows[2]["extra_parameters"] == run["loss_parameters"] > 0
    names, counts = read_image_counts(config / "all" / "hint-seed1" / "test_counts.npz")
    assert names[0] == "test_00000"
    assert counts.sum(0).tolist() == test["confusion_matrix"]
    assert rows[2]["gain"] == pytest.approx(rows[2]["mean_iou_mean"] - rows[1]["mean_iou_mean"])
    text = (config / "all" / "comparison.md").read_text()
    assert "demo, 8 images of the split test, 4 classes; seeds 1: " in text
    assert text.rstrip("\n") in capsys.readouterr().out
    assert {file.name for file in (config / "all").glob("*.png")} >= {"gains.png", "curves.png", "pictures.png"}
    assert "- pictures.png: seed 1, whose gain is the median; the images in the middle by gain (" in text
    with Image.open(config / "all" / "pictures.png") as picture:  # image, truth, teacher, student alone, hint
        assert picture.width == 5 * (CELL_WIDTH + 4) - 4
    curve = json.loads((config / "all" / "none-seed1" / "trainer_state.json").read_text())["log_history"]
    assert {entry["step"] for entry in curve if "eval_mean_iou" in entry} == {1, 2}
    runs_here.clear()
    assert compare.main(["--config", str(config / "compare.yaml")]) == rows
    assert runs_here == []


SECONDS = {"none": 0.2, "cwd": 0.3, "attnfd": 0.5, "kd": 0.1}  # no step is shorter than that of none


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """A plan whose runs take these seconds a step, and no time; the steps of each."""
    steps = {}

    def run_all(runs, jobs, table=None, threads=None):
        for run in runs:
            flags = json.loads((run.output_dir / "recipe.yaml").read_text())
            steps[f"{run.output_dir.parent.name}/{run.output_dir.name}"] = flags["max_steps"]
            report = {"steps": flags["max_steps"], "step_seconds": SECONDS[flags["method"]]}
            run.report_file.write_text(json.dumps(report))

    monkeypatch.setattr(compare, "run_all", run_all)

    def plan(equal):
        methods = [Method(name, {"method": name}) for name in SECONDS]
        return Plan(tmp_path, {"max_steps": 100}, methods, [0, 1], "teacher", None, "test", equal)

    return plan, steps


@pytest.mark.parametrize(
    ("equal", "expected"),
    [
        ("steps", {"none": 100, "cwd": 100, "attnfd": 100, "kd": 100}),
        ("time", {"none": 100, "cwd": 66, "attnfd": 40, "kd": 100}),
        ("dearest", {"none": 250, "cwd": 166, "attnfd": 100, "kd": 250}),
    ],
)
def test_each_method_takes_the_steps_that_fit(stubbed, equal, expected):
    plan, steps = stubbed
    runs, seconds, _ = compare.run_everything(plan(equal), jobs=2)
    assert seconds == SECONDS | {"kd": 0.2}
    assert {name: theirs[0].report().steps for name, theirs in runs.items()} == expected
    assert [run.output_dir.name for run in runs["cwd"]] == ["cwd-seed0", "cwd-seed1"]
    assert steps["trials/cwd"] == 20
    if equal == "dearest":  # the student alone waits for its steps
        assert next(iter(steps)) == "trials/none"


def test_counts_of_images_add_up_to_the_scores_that_evaluation_has_without_them(config, tmp_path):
    flags = ["--model", str(config / "teacher"), "--dataset", "demo", "--use_cpu", "--batch_size", "3"]
    flags += ["--dataset_options", json.dumps(BASE["dataset_options"]), "--output", str(tmp_path / "scores.json")]
    plain = evaluate.main(flags)
    counted = evaluate.main([*flags, "--image_counts", str(tmp_path / "counts.npz")])
    assert counted.to_json() == plain.to_json()
    names, counts = read_image_counts(tmp_path / "counts.npz")
    assert (len(names), counts.shape) == (8, (8, 4, 4))
    assert counts.sum(0).tolist() == plain.confusion_matrix


def test_a_run_that_had_another_budget_than_its_baseline_is_refused_where_steps_are_equal():
    def result(method, steps):
        report = evaluate.RunReport(dataset="demo", mean_iou=0.5, method=method, seed=0, steps=steps, classes={})
        return compare.Result(method, [report], [])

    none, cwd = result("none", 10), result("cwd", 9)
    with pytest.raises(ValueError, match="steps = 10, the published network 9"):
        compare.refuse_other_budgets(none, [cwd], "steps")
    compare.refuse_other_budgets(none, [cwd], "time")


@pytest.mark.slow
def test_a_comparison_that_is_stopped_goes_on_from_the_checkpoints_of_its_runs(config, tmp_path):
    flags = [
        "--config",
        str(config / "compare.yaml"),
        "--output_dir",
        str(tmp_path),
        "--jobs",
        str(os.cpu_count()),
    ]  # one thread each
    command = [sys.executable, "-m", "hf_segkd.commands.cli", "compare", *flags, "--max_steps", "60"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("none-seed1/checkpoint-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    assert not (tmp_path / "none-seed1" / "evaluation.json").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads((tmp_path / "none-seed1" / "evaluation.json").read_text())
    assert 0 < report["resumed_from_step"] < report["steps"] == 60
    assert (tmp_path / "comparison.csv").is_file()


def test_two_comparisons_never_work_in_one_folder_and_the_lock_of_a_dead_one_is_free(tmp_path):
    lines = "import pathlib, sys, time\nfrom hf_segkd.commands.study import alone_in\n"
    lines += "with alone_in(pathlib.Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", lines, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match="Another comparison is at work in"), alone_in(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with alone_in(tmp_path), pytest.raises(ValueError, match="Another"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass
