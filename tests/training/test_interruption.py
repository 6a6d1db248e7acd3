"""SIGTERM at every moment of a run ends in a checkpoint that can be resumed, and exit code 143."""

import os
import signal
from types import SimpleNamespace

import pytest
from tiny_runs import trainer
from transformers import TrainerCallback

from hf_segkd.training.interruption import EXIT_CODE, Sigterm

EVALUATED = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}


class SignalOnce(TrainerCallback):
    """SIGTERM to this process at an event of a step."""

    def __init__(self, event, step):
        self.step = step
        setattr(self, event, self.signal)

    def signal(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = None
            os.kill(os.getpid(), signal.SIGTERM)


def interrupted(folder, event, step, **options):
    run = trainer(folder, **{**EVALUATED, **options})
    run.add_callback(SignalOnce(event, step))
    with pytest.raises(SystemExit) as stop:
        run.train()
    assert stop.value.code == EXIT_CODE
    return run


@pytest.mark.parametrize(
    ("event", "step", "saved"),
    [
        ("on_pre_optimizer_step", 1, 2),
        ("on_prediction_step", 2, 3),
        ("on_prediction_step", 4, 4),  # the last evaluation
        ("on_train_end", 4, 4),
    ],
)
def test_the_checkpoint_is_that_of_the_last_step_whenever_the_signal_comes(event, step, saved, tmp_path):
    run = interrupted(tmp_path, event, step)
    assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{saved}"]
    resumed = trainer(tmp_path, **EVALUATED)
    assert resumed.train("last").global_step == 4
    assert run.train().global_step == 4  # and the next run of the same trainer is not told


def test_a_finished_run_whose_best_student_is_in_place_keeps_the_checkpoints_it_has(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "mean_iou", "save_strategy": "best"}
    interrupted(tmp_path, "on_train_end", 4, **best)
    assert trainer(tmp_path, **EVALUATED, **best).train("last").global_step == 4


def test_the_checkpoint_can_be_resumed_though_others_hold_the_student_alone(tmp_path):
    options = {"save_only_model": True, "save_strategy": "steps", "save_steps": 1}
    run = interrupted(tmp_path, "on_pre_optimizer_step", 2, **options)
    assert run.args.save_only_model
    assert [(tmp_path / f"checkpoint-{step}" / "optimizer.pt").exists() for step in (1, 2, 3)] == [False, False, True]
    assert trainer(tmp_path, **EVALUATED, **options).train("last").global_step == 4


def test_a_signal_within_a_second_is_the_same_one_and_a_later_one_kills(monkeypatch):
    seconds, kills = iter([5.0, 5.9, 6.1]), []
    monkeypatch.setattr("hf_segkd.training.interruption.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(os, "kill", lambda *signalled: kills.append(signalled))
    with Sigterm().listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert kills == []
        signal.raise_signal(signal.SIGTERM)
    assert kills == [(os.getpid(), signal.SIGTERM)]
