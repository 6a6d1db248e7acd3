"""A run that was stopped and resumed is the run that was not: every file of the last checkpoint says the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import killed_runs
import pytest
import torch
from tiny_runs import network, trainer

from hf_segkd.checkpoints import RECORD_FILE
from hf_segkd.losses import LOSSES

WITH_PATHS = {"training_args.json"}


def read(file):
    return torch.load(file, weights_only=False) if file.suffix in (".pt", ".pth") else file.read_bytes()


def equal(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first == second) if not hasattr(first, "all") else bool((first == second).all())


def differing(first, second):
    """Names of the files that differ: student, loss, averages, optimizer, schedule, generators, logs."""
    names = {file.name for folder in (first, second) for file in folder.iterdir()} - WITH_PATHS
    return [name for name in sorted(names) if not equal(read(first / name), read(second / name))]


def resume(folder, checkpoint, **options):
    run = trainer(folder, student=network(seed=9), **options)
    run.train(resume_from_checkpoint=checkpoint if checkpoint is True else str(checkpoint))
    return run


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    subprocess.run([sys.executable, killed_runs.__file__, folder], check=True, env=environment)
    return folder


def codes(folder):
    return json.loads((folder / "codes.json").read_text())


def test_forty_steps_are_seventeen_a_kill_and_twenty_three(killed, tmp_path):
    assert codes(killed)["forty"] == -9
    trainer(tmp_path, **killed_runs.FORTY).train()
    resume(killed / "forty", True, **killed_runs.FORTY)
    for step in (34, 40):
        assert differing(tmp_path / f"checkpoint-{step}", killed / "forty" / f"checkpoint-{step}") == []


def test_a_killed_run_with_workers_accumulation_and_two_methods_is_resumed_exactly_twice(killed, tmp_path):
    assert codes(killed)["accumulated"] == -9
    trainer(tmp_path, **killed_runs.ACCUMULATED).train()
    for checkpoint in (3, 6):
        resume(killed / "accumulated", killed / "accumulated" / f"checkpoint-{checkpoint}", **killed_runs.ACCUMULATED)
        assert differing(tmp_path / "checkpoint-8", killed / "accumulated" / "checkpoint-8") == []


@pytest.mark.parametrize("method", ["none", *LOSSES])
def test_every_method_is_resumed_exactly_within_an_epoch(method, tmp_path):
    options = {"method": method, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}  # 3 steps an epoch
    trainer(tmp_path / "straight", **options).train()
    resume(tmp_path / "resumed", tmp_path / "straight" / "checkpoint-2", **options)
    assert differing(tmp_path / "straight" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4") == []
    assert differing(tmp_path / "straight" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-4") != []


@pytest.mark.parametrize("point", [*killed_runs.POINTS, *killed_runs.LATE_POINTS])
def test_a_checkpoint_that_was_killed_half_written_is_never_resumed(point, killed, tmp_path):
    folder = killed / point
    assert codes(killed)[point] == -9
    assert [path.name for path in (folder / "unfinished").iterdir()] == ["checkpoint-4"]
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    run = resume(folder, True, **{**killed_runs.SAVING, "max_steps": 5})
    assert run.state.global_step == 5
    assert not (folder / "unfinished").exists()
    assert (folder / "checkpoint-4" / RECORD_FILE).is_file()
