"""A run whose teacher is measured resumes with what was chosen, not with another measurement."""

import json

import pytest
import torch
from resumed_runs import differing, resume
from several_processes import GLOO, spawn
from tiny_runs import arguments, network, trainer

from hf_segkd.networks import arithmetic
from hf_segkd.networks.arithmetic import Arithmetic
from hf_segkd.training.checkpoints import RECORD_FILE

OPTIONS = {
    "method": "attnfd",
    "teacher_dtype": "fastest",
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
}


def slower(monkeypatch, dtype):
    """This number format seems slow, so that the other is chosen."""

    def seconds(network, images, fastest_yet):
        return 1.0 if network.dtype == dtype else 0.5

    monkeypatch.setattr(arithmetic, "_seconds", seconds)


def test_a_resumed_run_follows_the_choice_bit_for_bit_whatever_it_would_measure_now(monkeypatch, tmp_path):
    slower(monkeypatch, torch.float32)
    straight = trainer(tmp_path / "straight", **OPTIONS)
    straight.train()
    first = Arithmetic("bfloat16", True, False)
    assert straight.teacher.arithmetic == first
    record = json.loads((tmp_path / "straight" / "checkpoint-2" / RECORD_FILE).read_text())
    assert record["teacher's arithmetic"] == first._asdict()
    slower(monkeypatch, torch.bfloat16)
    resumed = resume(tmp_path / "resumed", tmp_path / "straight" / "checkpoint-2", **OPTIONS)
    assert resumed.teacher.arithmetic == first
    assert differing(tmp_path / "straight" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4") == []
    fresh = trainer(tmp_path / "fresh", **OPTIONS)
    fresh.train()
    assert fresh.teacher.arithmetic.dtype == "float32"


def test_a_trainer_that_measured_takes_another_checkpoints_choice(monkeypatch, tmp_path):
    slower(monkeypatch, torch.float32)
    trainer(tmp_path / "run", **OPTIONS).train()
    slower(monkeypatch, torch.bfloat16)
    other = trainer(tmp_path / "other", **OPTIONS)
    other.train()
    assert other.teacher.dtype == torch.float32
    other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert other.teacher.dtype == torch.bfloat16


def test_a_run_of_another_teacher_dtype_is_still_refused(monkeypatch, tmp_path):
    slower(monkeypatch, torch.float32)
    trainer(tmp_path, **OPTIONS).train()
    with pytest.raises(ValueError, match="trained with teacher_dtype 'fastest', this run has 'bfloat16'"):
        resume(tmp_path, True, **{**OPTIONS, "teacher_dtype": "bfloat16"})


def test_a_measured_format_and_a_shared_cache_contradict_each_other(tmp_path):
    with pytest.raises(ValueError, match="teacher_cache need one format: set teacher_dtype to float32"):
        arguments(tmp_path, teacher_dtype="fastest", teacher_cache=str(tmp_path), teacher_views=2)


@pytest.mark.slow
def test_a_compiled_run_measures_and_compiles_what_it_chose(monkeypatch, tmp_path):
    slower(monkeypatch, torch.float32)
    torch.compiler.reset()
    run = trainer(tmp_path, teacher=network(width=12, seed=1), torch_compile=True, torch_compile_backend="aot_eager",
                  **{**OPTIONS, "max_steps": 2})  # fmt: skip
    run.train()
    assert run.teacher.dtype == torch.bfloat16
    assert run._teacher_features(torch.randn(4, 3, 32, 48))["decoder"].dtype == torch.bfloat16


def measure_otherwise(rank, folder):
    """Process 0 finds bfloat16 faster, the other float32."""
    arithmetic._seconds = lambda network, images, yet: 1.0 if (network.dtype == torch.float32) == (rank == 0) else 0.5
    run = trainer(folder / "run", **{**OPTIONS, "max_steps": 1, "per_device_train_batch_size": 2}, **GLOO)
    assert run.args.world_size == 2
    run.train()
    torch.save(run.teacher.arithmetic._asdict(), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_that_measure_otherwise_take_the_choice_of_the_first(tmp_path):
    spawn(2, tmp_path, measure_otherwise)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert first["dtype"] == "bfloat16"
