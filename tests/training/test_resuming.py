"""A run that was stopped and resumed is the run that was not: every file of the last checkpoint says the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import killed_runs
import pytest
from resumed_runs import differing, resume
from tiny_runs import same, trainer, weights
from transformers import TrainerCallback

from hf_segkd.losses import LOSSES
from hf_segkd.training.checkpoints import RECORD_FILE
from hf_segkd.training.trainer import DistillationTrainer


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    subprocess.run([sys.executable, killed_runs.__file__, folder], check=True, env=environment)
    return folder


def codes(folder):
    return json.loads((folder / "codes.json").read_text())


def test_sixteen_steps_are_seven_a_kill_and_nine(killed, tmp_path):
    assert codes(killed)["sixteen"] == -9
    trainer(tmp_path, **killed_runs.SIXTEEN).train()
    resume(killed / "sixteen", True, **killed_runs.SIXTEEN)
    for step in (14, 16):
        assert differing(tmp_path / f"checkpoint-{step}", killed / "sixteen" / f"checkpoint-{step}") == []


def test_a_killed_run_with_workers_accumulation_and_two_methods_is_resumed_exactly_twice(killed, tmp_path):
    assert codes(killed)["accumulated"] == -9
    trainer(tmp_path, **killed_runs.ACCUMULATED).train()
    for checkpoint in (3, 6):
        resume(killed / "accumulated", killed / "accumulated" / f"checkpoint-{checkpoint}", **killed_runs.ACCUMULATED)
        assert differing(tmp_path / "checkpoint-8", killed / "accumulated" / "checkpoint-8") == []


@pytest.mark.usefixtures("_small_discriminator")
@pytest.mark.parametrize("method", ["none", *LOSSES])
def test_every_method_is_resumed_exactly_within_an_epoch(method, tmp_path):
    options = {"method": method, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}  # 3 steps an epoch
    trainer(tmp_path / "straight", **options).train()
    resume(tmp_path / "resumed", tmp_path / "straight" / "checkpoint-2", **options)
    assert differing(tmp_path / "straight" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4") == []
    at_two, at_four = (tmp_path / "straight" / f"checkpoint-{step}" / "model.safetensors" for step in (2, 4))
    assert at_two.read_bytes() != at_four.read_bytes()


@pytest.mark.parametrize("point", [*killed_runs.POINTS, *killed_runs.LATE_POINTS])
def test_a_checkpoint_that_was_killed_half_written_is_never_resumed(point, killed):
    folder = killed / point
    assert codes(killed)[point] == -9
    assert [path.name for path in (folder / "unfinished").iterdir()] == ["checkpoint-4"]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    run = resume(folder, True, **{**killed_runs.SAVING, "max_steps": 5})
    assert run.state.global_step == 5
    assert not (folder / "unfinished").exists()
    assert (folder / "checkpoint-4" / RECORD_FILE).is_file()


def test_sigterm_to_a_process_group_ends_in_a_checkpoint_of_the_step_in_work_and_exit_code_143(killed, tmp_path):
    assert codes(killed)["term"] == 143
    assert [path.name for path in (killed / "term").iterdir()] == ["checkpoint-4"]
    options = {**killed_runs.SIGNALLED, "save_strategy": "steps", "save_steps": 6}
    straight = trainer(tmp_path, **options)
    straight.train()
    resumed = resume(killed / "term", True, **options)
    assert [name for name in differing(tmp_path / "checkpoint-6", killed / "term" / "checkpoint-6")] == [
        "trainer_state.json"
    ]
    steps = [[log for log in run.state.log_history if "loss" in log] for run in (straight, resumed)]
    assert steps[0] == steps[1]  # but the evaluation at step 4 was left out


def test_a_second_sigterm_kills_at_once(killed):
    assert codes(killed)["killed"] == -15
    assert not list((killed / "killed").glob("*"))


def test_workers_that_live_on_and_evaluations_change_nothing_and_neither_does_resuming_with_others(tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}  # 3 steps an epoch; with dropout
    trainer(tmp_path / "plain", **options).train()
    living = {**options, "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    resume(tmp_path / "resumed", tmp_path / "plain" / "checkpoint-2", **living)
    resume(tmp_path / "resumed_plain", tmp_path / "resumed" / "checkpoint-4", **options)
    trainer(tmp_path / "evaluated", **options, eval_strategy="steps", eval_steps=1).train()
    for folder in ("resumed", "resumed_plain"):
        assert differing(tmp_path / "plain" / "checkpoint-8", tmp_path / folder / "checkpoint-8") == []
    found = differing(tmp_path / "plain" / "checkpoint-8", tmp_path / "evaluated" / "checkpoint-8")
    assert found == ["trainer_state.json"]


def test_checkpoints_at_the_end_of_epochs_and_the_best_one_are_resumed_exactly(tmp_path):
    options = {
        "method": "kd",
        "max_steps": 9,
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "mean_iou",
    }
    straight = trainer(tmp_path, **options)
    straight.train()
    kept = tmp_path.with_name("kept")
    shutil.copytree(tmp_path / "checkpoint-9", kept)
    shutil.rmtree(tmp_path / "checkpoint-9")
    resumed = resume(tmp_path, tmp_path / "checkpoint-3", **options)
    found = set(differing(kept, tmp_path / "checkpoint-9"))
    assert found <= {"trainer_state.json"}  # which holds the seconds that evaluations took
    assert resumed.state.best_model_checkpoint == straight.state.best_model_checkpoint
    assert same(weights(resumed.student), weights(straight.student))


def test_a_finished_run_that_is_resumed_trains_evaluates_and_saves_nothing(tmp_path):
    options = {"max_steps": 4, "save_strategy": "epoch", "eval_strategy": "epoch"}  # 3 steps an epoch
    finished = trainer(tmp_path, **options)
    finished.train()
    events = []

    class Record(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            events.append("step")

        def on_evaluate(self, args, state, control, **kwargs):
            events.append("evaluation")

        def on_save(self, args, state, control, **kwargs):
            events.append("checkpoint")

    resumed = trainer(tmp_path, **options)
    resumed.add_callback(Record())
    resumed.train("last")
    assert (resumed.state.global_step, events) == (4, [])
    assert same(weights(resumed.student), weights(finished.student))


def test_a_moved_run_keeps_its_best_checkpoint_and_ends_with_it(tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "mean_iou", "save_total_limit": 2}
    scores = {1: 0.4, 2: 0.1, 3: 0.2, 4: 0.3}
    monkeypatch.setattr(
        DistillationTrainer,
        "_evaluate",
        lambda run, *args, **kwargs: {"eval_mean_iou": scores[run.state.global_step]},
    )
    trainer(tmp_path / "here", max_steps=3, **options).train()
    shutil.move(tmp_path / "here", tmp_path / "there")
    resumed = resume(tmp_path / "there", True, max_steps=4, **options)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-1")
    best = type(resumed.student).from_pretrained(tmp_path / "there" / "checkpoint-1")
    assert same(weights(resumed.student), weights(best))
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["checkpoint-1", "checkpoint-4"]
