from types import SimpleNamespace

import pytest
from tiny_runs import trainer

from hf_segkd.training import term_means
from hf_segkd.training.term_means import ConstantTerms, logger


@pytest.fixture
def warnings(monkeypatch):
    told = []
    monkeypatch.setattr(logger, "warning", told.append)
    return told


def feed(watch, steps, **means):
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    watch.on_train_begin(None, state, None)
    for index, step in enumerate(steps):
        state.global_step = step
        logs = {"raw_ce": 1.0}
        for name, (weight, value) in means.items():
            raw = value(index) if callable(value) else value
            logs |= {f"raw_{name}": raw, f"loss_{name}": weight * raw}
        watch.on_log(None, state, None, logs)


def test_a_term_that_is_constant_for_fifty_steps_is_named_once(warnings):
    feed(ConstantTerms(), range(10, 200, 10), kd=(1, lambda i: 1 / (1 + i)), cwd=(3, 0.25), off=(0, 0.25))
    assert len(warnings) == 1
    assert "The term cwd is 0.25 in all logs of steps 1 to 50" in warnings[0]


def test_a_term_that_starts_to_move_in_time_or_is_a_little_different_is_left_alone(warnings):
    feed(ConstantTerms(), range(10, 200, 10), late=(1, lambda i: max(i, 3)), slow=(1, lambda i: 1 + i * 1e-5))
    assert warnings == []


def test_a_mean_of_zero_over_fifty_steps_is_enough_and_a_later_zero_counts_too(warnings):
    feed(ConstantTerms(), [100], kd=(1, 0.0), cwd=(1, 2.0))
    assert [text.split(" in ")[0] for text in warnings] == ["The term kd is 0"]
    feed(ConstantTerms(), range(10, 200, 10), kd=(1, lambda i: 0.0 if i > 3 else i + 1))
    assert "is 0 in all logs of steps 41 to 90" in warnings[1]


def test_a_run_whose_term_sees_nothing_is_warned_about(warnings, tmp_path, monkeypatch):
    run = trainer(tmp_path, method="cwd,kd", max_steps=6)
    terms = run.model.loss.losses[0].terms
    run.model.loss.losses[0].terms = lambda *args: {name: value * 0 for name, value in terms(*args).items()}
    monkeypatch.setattr(term_means, "STEPS", 5)
    run.train()
    assert [text.split(" in ")[0] for text in warnings] == ["The term cwd is 0"]
