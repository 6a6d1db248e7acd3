"""Two processes are resumed exactly too, and agree on when to stop. One pair of processes does it all."""

import json
import os
import signal

import pytest
from resumed_runs import differing, resume
from several_processes import spawn
from tiny_runs import trainer
from transformers import TrainerCallback

from hf_segkd.losses import LOSSES

METHODS = ["none", *LOSSES]
# 12 images: 3 steps an epoch without accumulation, 2 with, the second of one batch. Both are resumed within the second
# epoch, whose order of images is another than the first's.
PLAIN = {"gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "save_steps": 4, "max_steps": 5}
ACCUMULATED = {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1, "save_steps": 3, "max_steps": 4}


def options(method):
    common = {"per_device_train_batch_size": 2, "ddp_backend": "gloo", "save_strategy": "steps", "ema_decay": 0.9}
    return common | (PLAIN if METHODS.index(method) % 2 else ACCUMULATED) | {"method": method}


class TermToTheSecond(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def run_everything(rank, folder):
    for method in METHODS:
        chosen = options(method)
        straight = trainer(folder / method / "straight", **chosen)
        assert straight.args.world_size == 2
        straight.train()
        resume(
            folder / method / "resumed", folder / method / "straight" / f"checkpoint-{chosen['save_steps']}", **chosen
        )
    run = trainer(folder / "term", **options("kd"))
    run.add_callback(TermToTheSecond())
    try:
        run.train()
    except SystemExit as exit_:
        (folder / f"exit-{rank}.json").write_text(json.dumps([exit_.code, run.state.global_step]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return spawn(2, tmp_path_factory.mktemp("two"), run_everything)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_resumed_exactly_within_an_epoch(method, finished):
    last = f"checkpoint-{options(method)['max_steps']}"
    straight, resumed = finished / method / "straight" / last, finished / method / "resumed" / last
    assert {"rng_state_0.pth", "rng_state_1.pth", "ema.safetensors"} <= {file.name for file in straight.iterdir()}
    assert differing(straight, resumed) == []


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(finished):
    for rank in (0, 1):
        assert json.loads((finished / f"exit-{rank}.json").read_text()) == [143, 2]
    assert [path.name for path in (finished / "term").iterdir()] == ["checkpoint-2"]
    assert (finished / "term" / "checkpoint-2" / "rng_state_1.pth").is_file()


@pytest.mark.slow
def test_another_number_of_processes_is_warned_about_and_other_images_per_step_refused(finished, tmp_path, caplog):
    one = options("kd") | {"per_device_train_batch_size": 4}
    del one["ddp_backend"]
    checkpoint = finished / "kd" / "straight" / f"checkpoint-{one['save_steps']}"
    resume(tmp_path, checkpoint, **one)
    assert any("trained by 2 processes, this run has 1" in record.message for record in caplog.records)
    with pytest.raises(ValueError, match="images per step: 4, this run has 2"):
        resume(tmp_path, checkpoint, **one | {"per_device_train_batch_size": 2})
