"""What can only be seen on a GPU. Where there is none, what can runs on the CPU, so that it keeps running."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from resumed_runs import differing
from tiny_runs import StopAfter, arguments, network, processor, same, scenes, weights
from torch import nn

from hf_segkd.training.trainer import DistillationTrainer

ROOT = Path(__file__).parents[2]
GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA device")
pytestmark = pytest.mark.gpu
NO_DROPOUT = {"aspp_dropout": 0.0, "decoder_dropout": 0.0, "classifier_dropout": 0.0}  # other layouts draw other masks

sys.path.append(str(ROOT / "scripts"))  # at the end: evaluate.py there would hide the package
spec = importlib.util.spec_from_file_location("distillation_steps", ROOT / "scripts" / "distillation_steps.py")
distillation_steps = importlib.util.module_from_spec(spec)
spec.loader.exec_module(distillation_steps)


def run_of(folder, seed=0, **overrides):
    options = {"method": "attnfd", "use_cpu": not GPU, "max_steps": 4, **overrides}
    return DistillationTrainer(
        model=network(seed=seed, **NO_DROPOUT),
        args=arguments(folder, **options),
        teacher=network(width=12, seed=1),
        train_dataset=scenes(),
        eval_dataset=scenes("val", 4),
        processing_class=processor(),
    )


def trained(folder, seed=0, **overrides):
    run = run_of(folder, seed, **overrides)
    run.train()
    return run


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch):
    """Kernels that give the same twice, where there are such."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = before


def test_the_run_is_where_it_should_be(tmp_path):
    run = trained(tmp_path, max_steps=1)
    expected = "cuda" if GPU else "cpu"
    assert {value.device.type for value in run.model.state_dict().values()} == {expected}
    assert run.teacher.device.type == expected


@pytest.mark.parametrize("options", [{"bf16": True}, {"channels_last": True}, {"teacher_dtype": "fastest"}])
def test_other_formats_and_layouts_train_as_the_plain_run_does(options, tmp_path):
    plain, other = trained(tmp_path / "plain", max_steps=2), trained(tmp_path / "other", max_steps=2, **options)
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4 if "channels_last" in options else 2e-2)
    assert all(value.isfinite().all() for value in weights(other.model).values())


def resumed_and_straight(tmp_path, **options):
    saving = {"save_strategy": "steps", "save_steps": 2, **options}
    straight = [trained(tmp_path / name, **saving) for name in ("straight", "again")]
    cut = run_of(tmp_path / "cut", **saving)
    cut.add_callback(StopAfter(2))
    cut.train()
    resumed = run_of(tmp_path / "cut", seed=9, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    return (*straight, resumed)


def test_a_run_resumes_bit_for_bit_where_the_device_gives_the_same_twice(tmp_path):
    straight, again, resumed = resumed_and_straight(tmp_path)
    if same(weights(straight.model), weights(again.model)):
        folders = (tmp_path / "straight" / "checkpoint-4", tmp_path / "cut" / "checkpoint-4")
        assert differing(*folders) == []
    else:
        assert GPU  # CPUs do
        for name, value in weights(straight.model).items():
            torch.testing.assert_close(weights(resumed.model)[name], value, rtol=1e-2, atol=1e-3)


@needs_gpu
def test_fp16_saves_its_gradient_scaler_and_resumes_with_it(tmp_path):
    straight, _, resumed = resumed_and_straight(tmp_path, fp16=True)
    at_two, at_four = (
        torch.load(tmp_path / "cut" / f"checkpoint-{step}" / "scaler.pt", weights_only=True) for step in (2, 4)
    )
    assert at_two["scale"] > 0
    assert at_four == resumed.accelerator.scaler.state_dict() == straight.accelerator.scaler.state_dict()
    assert losses(resumed) == pytest.approx(losses(straight), rel=1e-2)


@needs_gpu
def test_compiled_student_and_teacher_train_as_plain_ones(tmp_path):
    torch.compiler.reset()
    plain = trained(tmp_path / "plain")
    compiled = trained(tmp_path / "compiled", torch_compile=True, torch_compile_backend="inductor")
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-2)


def test_a_synchronised_batch_norm_is_a_batch_norm_in_one_process():
    device = "cuda" if GPU else "cpu"
    plain = network(**NO_DROPOUT).to(device).train()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network(**NO_DROPOUT).to(device)).train()
    synchronised.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)).to(device)
    expected, actual = plain(pixel_values=images).logits, synchronised(pixel_values=images).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(synchronised.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_teacher_cache_changes_nothing(tmp_path):
    options = {"teacher_views": 1, "teacher_cache_dtype": "float32", "max_steps": 4, "per_device_train_batch_size": 6}
    plain = trained(tmp_path / "plain", **options)
    cached = trained(tmp_path / "cached", teacher_cache=str(tmp_path / "cache"), **options)
    assert list((tmp_path / "cache").glob("*/*.safetensors"))
    assert losses(cached) == pytest.approx(losses(plain), rel=1e-4)
    if not GPU:
        assert same(weights(cached.model), weights(plain.model))


def test_a_step_waits_for_the_device_once_and_an_image_only_to_be_sent(tmp_path):
    """The check for NaN is the one wait; a log waits too, and there is none within these steps."""

    def waits_of(steps):
        run = run_of(tmp_path, max_steps=steps, logging_steps=1000, per_device_train_batch_size=2)
        return distillation_steps.waits(run.train, run.args.device)

    few, many = waits_of(2), waits_of(6)  # of one epoch
    of_four_steps = {place: many[place] - few[place] for place in many if many[place] > few[place]}
    sent = {place for place in of_four_steps if place.startswith(("utils/operations.py", "transformers/trainer.py"))}
    inside = {place: count for place, count in of_four_steps.items() if place not in sent}
    assert sum(inside.values()) == 4, inside
    assert all(place.startswith("training/nonfinite.py") for place in inside), inside
    assert GPU or not sent


@needs_gpu
def test_one_process_trains_with_nccl(tmp_path):
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": "29517", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    script = (
        "import sys, json, torch; sys.path.append('tests/gpu'); import test_gpu;"
        "run = test_gpu.trained(sys.argv[1], max_steps=2);"
        "norm = torch.nn.SyncBatchNorm(4).cuda().train();"
        "finite = bool(norm(torch.randn(2, 4, 8, 8, device='cuda')).isfinite().all());"
        "print(json.dumps([torch.distributed.get_backend(), type(run.model_wrapped).__name__, finite]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == ["nccl", "DistributedDataParallel", True]
