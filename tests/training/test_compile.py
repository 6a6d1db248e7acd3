import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import StopAfter, network, same, trainer, weights

from hf_segkd.training.ema import AVERAGE_FILE
from hf_segkd.training.student_files import LOSS_STATE_FILE

PLAIN = {"aspp_dropout": 0.0, "decoder_dropout": 0.0, "classifier_dropout": 0.0}  # its masks are drawn otherwise
FILES = ("model.safetensors", LOSS_STATE_FILE, AVERAGE_FILE)
OPTIONS = {
    "method": "attnfd",
    "ema_decay": 0.5,
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
}


def run_of(folder, backend=None, student_seed=0):
    compiled = {} if backend is None else {"torch_compile": True, "torch_compile_backend": backend}
    return trainer(folder, student=network(seed=student_seed, **PLAIN), **OPTIONS, **compiled)


def assert_same_files(plain, compiled):
    """The same keys, and values up to the rounding of other kernels."""
    for file in FILES:
        expected, actual = load_file(plain / file), load_file(compiled / file)
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=5e-3, atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_run_saves_and_scores_what_a_plain_one_does(backend, tmp_path):
    torch.compiler.reset()
    plain, compiled = run_of(tmp_path / "plain"), run_of(tmp_path / "compiled", backend)
    for run in (plain, compiled):
        run.train()
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"
    assert_same_files(tmp_path / "plain" / "checkpoint-4", tmp_path / "compiled" / "checkpoint-4")
    scores = [run.evaluate()["eval_mean_iou"] for run in (plain, compiled)]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


@pytest.mark.slow
def test_a_compiled_run_resumes_bit_for_bit(tmp_path):
    torch.compiler.reset()
    straight, cut = (run_of(tmp_path / name, "aot_eager") for name in ("straight", "cut"))
    cut.add_callback(StopAfter(2))
    for run in (straight, cut):
        run.train()
    resumed = run_of(tmp_path / "cut", "aot_eager", student_seed=9)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert same(weights(resumed.model), weights(straight.model))
    for file in FILES:
        first, second = (load_file(tmp_path / name / "checkpoint-4" / file) for name in ("straight", "cut"))
        assert same(first, second)
