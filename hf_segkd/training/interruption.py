"""`StopAtSigterm`: saves a checkpoint and exits on SIGTERM, which schedulers send before they take a machine away."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import torch
from torch import distributed as dist
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

# 128 + 15: a shell reports it for a process that SIGTERM ended.
EXIT_CODE = 128 + signal.SIGTERM
# A launcher and a scheduler may both hand on the same signal.
SECONDS_OF_ONE_SIGNAL = 1.0


class Sigterm:
    """Whether a process was asked to end, inside `listening`; a second SIGTERM kills it at once.

    In a thread other than the main one Python receives no signals, and SIGTERM does what it did before.

    Attributes:
        stopping: Whether the run is ending with the checkpoint of the current step.
    """

    def __init__(self) -> None:
        self._received: float | None = None
        self.stopping = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGTERM is noted instead of obeyed; one that an earlier run received is forgotten."""
        self._received, self.stopping = None, False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received is None:
            self._received = now
        elif now - self._received > SECONDS_OF_ONE_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def received(self, args: TrainingArguments) -> bool:
        """Whether one of the processes received SIGTERM; call it on all."""
        received = self._received is not None
        if args.world_size == 1:
            return received
        flag = torch.tensor(int(received), device=args.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    @contextlib.contextmanager
    def with_full_state(self, args: TrainingArguments) -> Iterator[None]:
        """Inside, `args.save_only_model` is off for a checkpoint that ends the run: resuming needs the full state."""
        only_model = args.save_only_model
        args.save_only_model = only_model and not self.stopping
        try:
            yield
        finally:
            args.save_only_model = only_model


class StopAtSigterm(TrainerCallback):
    """Ends a run on SIGTERM with a checkpoint of the current step and exit code 143.

    An evaluation that is due at that step is left out, because there may be no time. With several processes all stop
    at the same step, whichever of them received the signal: one number is reduced at each step.

    Args:
        sigterm: Listens for the signal while the run trains.
    """

    def __init__(self, sigterm: Sigterm) -> None:
        self.sigterm = sigterm

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint when one of the processes received SIGTERM."""
        if self.sigterm.received(args):
            self.sigterm.stopping = True
            control.should_save, control.should_evaluate, control.should_training_stop = True, False, True

    def on_epoch_end(self, args, state, control, **kwargs):
        """The same, for a signal that came during the evaluation or the saving of the epoch's last step."""
        self.on_step_end(args, state, control)

    def on_save(self, args, state, control, **kwargs):
        """Exit when the checkpoint is written."""
        if self.sigterm.stopping:
            if state.is_world_process_zero:
                logger.warning(
                    f"SIGTERM: the checkpoint of step {state.global_step} is in {args.output_dir}, go on from it with "
                    f"--resume_from_checkpoint last. Exiting with code {EXIT_CODE}."
                )
            raise SystemExit(EXIT_CODE)


def ignore_sigterm_in_workers(loader: DataLoader) -> DataLoader:
    """Make the workers of a loader that accelerate prepared ignore the SIGTERM of launchers; returns the loader."""
    inner = loader.base_dataloader
    start = inner.worker_init_fn
    if not (isinstance(start, partial) and start.func is ignore_sigterm_in_worker):  # a kept loader comes again
        inner.worker_init_fn = partial(ignore_sigterm_in_worker, start)
    return loader


def ignore_sigterm_in_worker(start: Callable[[int], None] | None, worker: int) -> None:
    """Start a worker of a data loader that SIGTERM ends only if its parent sends it. Linux only.

    Launchers such as torchrun signal the whole process group, and without its workers the current step would fail.
    The parent ends its workers by the same signal, so the worker checks who sent it.

    Args:
        start: What the data loader does at the start of a worker.
        worker: Number of the worker.
    """
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # so that it waits for the thread
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    if start is not None:
        start(worker)


def _exit_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
