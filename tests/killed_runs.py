"""Runs in processes of their own that are killed: `python killed_runs.py FOLDER` leaves what they leave.

One interpreter starts once, and forks for each run: importing the libraries takes longer than a run.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from tiny_runs import trainer
from transformers import TrainerCallback

from hf_segkd.training import checkpoint_writer

SIXTEEN = {"method": "attnfd", "ema_decay": 0.9, "max_steps": 16, "save_strategy": "steps", "save_steps": 7}
ACCUMULATED = {
    "method": "cirkd,cwd",
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "dataloader_num_workers": 2,
}
SAVING = {"method": "attnfd", "max_steps": 5, "save_strategy": "steps", "save_steps": 2}
SIGNALLED = {"method": "kd", "max_steps": 6, "eval_strategy": "steps", "eval_steps": 4, "dataloader_num_workers": 1}
# Methods of the trainer, after which a process dies while it writes the checkpoint of step 4.
POINTS = ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"]
# Functions of the module, before which it dies.
LATE_POINTS = ["write_record", "fsync"]


class KillItself(TrainerCallback):
    """A real `kill -9`, from within a step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            die()


class Signals(TrainerCallback):
    """SIGTERM to the process or, as launchers do, to its group with the data loader's workers, within step 4."""

    def __init__(self, to_group=False, pauses=()):
        self.to_group, self.pauses = to_group, pauses

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 3:
            for pause in (0, *self.pauses):
                time.sleep(pause)
                # By another process, which is of the group too.
                subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}" if self.to_group else str(os.getpid())])


def signalled(folder, signals, **options):
    run = trainer(folder, **{**SIGNALLED, **options})
    run.add_callback(signals)
    run.train()
    raise AssertionError("the run went on")


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_in_step(folder, step, options):
    run = trainer(folder, **options)
    run.add_callback(KillItself(step))
    run.train()


def killed_while_saving(folder, point):
    run = trainer(folder, **SAVING)
    original = getattr(run, point)

    def then_die(output_dir, *args, **kwargs):
        original(output_dir, *args, **kwargs)
        if run.state.global_step == 4:
            die()

    setattr(run, point, then_die)
    run.train()


def killed_late_while_saving(folder, point):
    run, original = trainer(folder, **SAVING), getattr(checkpoint_writer, point)

    def die_first(*args, **kwargs):
        return die() if run.state.global_step == 4 else original(*args, **kwargs)

    setattr(checkpoint_writer, point, die_first)
    run.train()


def run_in_fork(function, *args):
    """Exit code of a process that runs the function; minus the signal that killed it."""
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        code = 1
        try:
            function(*args)
            code = 0
        except SystemExit as exit_:
            code = exit_.code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(folder):
    torch.set_num_threads(1)
    gc.freeze()  # see conftest.py
    codes = {}
    codes["sixteen"] = run_in_fork(killed_in_step, folder / "sixteen", 8, SIXTEEN)
    codes["accumulated"] = run_in_fork(killed_in_step, folder / "accumulated", 4, ACCUMULATED)
    for point in POINTS:
        codes[point] = run_in_fork(killed_while_saving, folder / point, point)
    for point in LATE_POINTS:
        codes[point] = run_in_fork(killed_late_while_saving, folder / point, point)
    codes["term"] = run_in_fork(signalled, folder / "term", Signals(to_group=True, pauses=[0.1]))
    codes["killed"] = run_in_fork(signalled, folder / "killed", Signals(pauses=[1.1]))
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    start = time.time()
    main(Path(sys.argv[1]))
    print(f"{time.time() - start:.1f} s")
