"""Small callbacks: `AtTrainBegin`, `EpochBegin`, `ResumedRun`, `AdversaryCallback`, `StepTimes`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from hf_segkd.data import AugmentedDataset
from hf_segkd.losses.adversary import Adversary

logger = logging.get_logger(__name__)


class AtTrainBegin(TrainerCallback):
    """Calls a function when all is prepared and the steps are about to begin.

    Args:
        call: The function.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def on_train_begin(self, args, state, control, **kwargs):
        """Called for a resumed run too."""
        self.call()


class EpochBegin(TrainerCallback):
    """Sets the epoch of the augmentation, and has living workers draw as new ones would."""

    def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
        """Called for a resumed run too."""
        # A subclass may give a loader that accelerate did not prepare; it is then used itself.
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        if not isinstance(loader, DataLoader):
            return
        if isinstance(loader.dataset, AugmentedDataset):  # it draws from the epoch, seed and index
            loader.dataset.set_epoch(int(state.epoch or 0))
        if loader._iterator is not None:
            # Workers that live on (dataloader_persistent_workers) get no new seed from the generator that dropout
            # draws from too. New ones, after a resume, do; so it is drawn for the living as well.
            torch.empty((), dtype=torch.int64).random_()


class ResumedRun(TrainerCallback):
    """Finds the best checkpoint beside the resumed one, and evaluates and saves nothing that was not trained since.

    `Trainer` saves the best checkpoint's path, and keeps it from being deleted by comparing paths as they are written;
    the run's folder may have been moved.

    Args:
        checkpoint: The resumed checkpoint; None for a new run, for which nothing is done.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.checkpoint = checkpoint
        self.step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        """Look for the best checkpoint."""
        self.step = state.global_step
        if self.checkpoint is None:
            return
        best = TrainerState.load_from_json(str(self.checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
        if best is None:
            return
        folder, output = self.checkpoint.parent, Path(args.output_dir)
        here = (output if output.is_dir() and output.samefile(folder) else folder) / Path(best).name
        if here.is_dir():
            if state.best_model_checkpoint is None:
                logger.warning(f"The best checkpoint is not lost: the run's folder was moved, it is {here} now.")
            state.best_model_checkpoint = str(here)

    def on_epoch_end(self, args, state, control, **kwargs):
        """When the resumed checkpoint is that of the last step, the epoch ends without a step."""
        if state.global_step == self.step:
            control.should_evaluate = control.should_save = False


class AdversaryCallback(TrainerCallback):
    """Lets the discriminator learn from each batch; updates it with each optimizer step of the student.

    When the gradient scaler of fp16 skips the student's step, the discriminator's is left out too.

    The mixes of the gradient penalty are drawn from a generator keyed by seed, step, batch and process, so a resumed
    run draws what the uninterrupted one does. The checkpoint of the loss holds the adversary with its optimizer.

    Args:
        adversary: The adversary of the loss.
        record: Takes the name and the scalar value of what is logged for each batch.
    """

    def __init__(self, adversary: Adversary, record: Callable[[str, Tensor], None]) -> None:
        self.adversary = adversary
        self.record = record

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop what an interrupted run of this trainer left."""
        self.adversary.forget()

    def on_substep_end(self, args, state, control, **kwargs):
        """Called after each batch of an optimizer step but the last."""
        key = (args.seed, state.global_step, self.adversary.batches_learnt, args.process_index)
        self.record("discriminator_loss", self.adversary.learn(np.random.default_rng(key)))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Called after the last batch."""
        self.on_substep_end(args, state, control)

    def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
        """Called after the student's step."""
        if optimizer.step_was_skipped:
            self.adversary.forget()
            return
        try:
            self.adversary.update(state.global_step / state.max_steps)
        except FloatingPointError as error:
            raise FloatingPointError(f"Step {state.global_step + 1}: {error}") from error


class StepTimes(TrainerCallback):
    """Times the optimizer steps of a run, the loading of their images included.

    Evaluations and checkpoints between two steps lengthen few of the times, and so not their median.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        """Forget an earlier run."""
        self.ends.clear()

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time."""
        self.ends.append(time.perf_counter())

    @property
    def median(self) -> float | None:
        """Seconds from the end of a step to that of the next, the median; None for a run of less than two steps."""
        times = [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(times) if times else None
