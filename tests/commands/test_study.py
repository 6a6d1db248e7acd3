import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from hf_segkd.commands import study
from hf_segkd.commands.live_table import LiveTable
from hf_segkd.commands.study import Run, run_all

SCRIPT = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
if "--fail" in sys.argv:
    raise SystemExit("out of luck")
if "--wait" in sys.argv:
    def save(*_):
        (folder / "saved").write_text("")
        raise SystemExit(143)
    signal.signal(signal.SIGTERM, save)
    (folder / "waits").write_text("")
    time.sleep(60)
score = {"mean_iou": 0.5, "split": "val", "train_seconds": 1.0, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
(folder / "evaluation.json").write_text(json.dumps(score))
(folder / "training_args.json").write_text("{}")
"""


def runs(tmp_path, *flags, names="ab"):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return [Run(script, tmp_path / name, list(flags)) for name in names]


def test_runs_are_made_once_and_kept(tmp_path, capsys):
    run_all(runs(tmp_path), jobs=2)
    run_all(runs(tmp_path, "--fail"), jobs=2)  # would fail if it ran again
    assert [json.loads(Path(tmp_path, name, "evaluation.json").read_text())["mean_iou"] for name in "ab"] == [0.5, 0.5]
    assert "done before" in capsys.readouterr().out


def test_a_run_that_fails_stops_the_study_with_the_end_of_its_log(tmp_path):
    with pytest.raises(ValueError, match="a failed with exit code 1:\nout of luck"):
        run_all(runs(tmp_path, "--fail"), jobs=1)


def test_a_run_with_scores_and_without_a_student_is_not_done(tmp_path):
    (run,) = runs(tmp_path, names="a")
    run.output_dir.mkdir()
    run.report_file.write_text("{}")
    assert not run.is_done
    (run.output_dir / "training_args.json").write_text("{}")
    assert run.is_done


def test_an_interrupted_run_goes_on_from_its_last_checkpoint_and_a_command_is_run_as_a_module(tmp_path):
    (run,) = runs(tmp_path, "--seed", "1", names="a")
    assert "--resume_from_checkpoint" not in run.command()
    (run.output_dir / "checkpoint-5").mkdir(parents=True)
    assert run.command()[-4:] == ["--seed", "1", "--resume_from_checkpoint", "last"]
    assert Run("distill", tmp_path / "b").command()[1:4] == ["-m", "hf_segkd.commands.cli", "distill"]


def test_runs_are_dealt_out_to_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "visible_gpus", lambda: ["3", "5"])
    all_runs = runs(tmp_path, names="abc")
    run_all(all_runs, jobs=3)
    assert [run.report().gpu for run in all_runs] == ["3", "5", "3"]


@pytest.fixture
def ctrl_c_is_heeded():
    """Shells let what they start in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heeded")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_study_that_is_stopped_waits_until_its_runs_have_saved(tmp_path, number, error):
    before = signal.getsignal(number)

    def stop():
        while not all((tmp_path / name / "waits").exists() for name in "ab"):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(error):
        run_all(runs(tmp_path, "--wait"), jobs=2)
    assert all((tmp_path / name / "saved").exists() for name in "ab")
    assert signal.getsignal(number) is before


def test_a_table_shows_methods_and_seeds_and_only_those_that_run(tmp_path, capsys):
    table = LiveTable([("teacher", ["t"]), ("none", ["a", "b"])], ["seed 0", "seed 1"])
    run_all(runs(tmp_path), jobs=1, table=table)
    table.show("t", "12 %")
    assert [line.split() for line in table.text().splitlines()[2:]] == [
        ["|", "teacher", "|", "12", "%", "|", "|"],
        ["|", "none", "|", "50.00", "|", "50.00", "|"],
    ]
    assert capsys.readouterr().out.count("| none") == 2  # when a run is done
    again = LiveTable(table.rows, table.columns)
    run_all(runs(tmp_path), jobs=1, table=again)
    assert again.states == {"a": "50.00", "b": "50.00"}
    assert capsys.readouterr().out == ""


def test_on_a_terminal_a_table_is_drawn_over_the_one_before_until_other_lines_follow(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    table = LiveTable([("none", ["a"])], ["seed 0"])
    table.show("a", "1 %")
    table.show("a", "2 %")
    assert capsys.readouterr().out.count("\x1b[3F\x1b[J") == 1
    table.leave()
    table.show("a", "3 %")
    assert "\x1b" not in capsys.readouterr().out
