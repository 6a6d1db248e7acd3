"""Small callbacks of the trainer: when the steps begin, when an epoch begins, and when a run is resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from hf_segkd.data import AugmentedDataset

logger = logging.get_logger(__name__)


class AtTrainBegin(TrainerCallback):
    """Calls a function when all is prepared and the steps are about to begin.

    Args:
        call: The function.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def on_train_begin(self, args, state, control, **kwargs):
        """Of a resumed run too."""
        self.call()


class EpochBegin(TrainerCallback):
    """Tells the augmentation the epoch, and has living workers draw as new ones would."""

    def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
        """Of a resumed run too."""
        # One that a subclass gives may be no accelerate's, and is then its own.
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        if not isinstance(loader, DataLoader):
            return
        if isinstance(loader.dataset, AugmentedDataset):  # which draws from the epoch, together with seed and index
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
        checkpoint: The resumed one; None of a new run, for which nothing is done.
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
