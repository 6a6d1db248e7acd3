"""`Trainer` whose checkpoints are whole or not there, and which resumes only what it can go on from."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints
from transformers.utils import logging

from hf_segkd.training.checkpoints import (
    RECORD_FILE,
    check_files,
    checkpoints_in,
    flush,
    newest_whole,
    num_bytes,
    write_record,
)
from hf_segkd.training.distiller import Distiller
from hf_segkd.training.interruption import EXIT_CODE, Interruption, start_deaf_worker
from hf_segkd.training.publishing_trainer import PublishingTrainer
from hf_segkd.training.run_settings import differences, run_settings

logger = logging.get_logger(__name__)

# Where a checkpoint is written, in the output folder; once it is whole it is moved to its place.
UNFINISHED = "unfinished"
# End of the name of a checkpoint that makes room for one of the same step, in the same folder.
REPLACED = "-replaced"


class CheckpointingTrainer(PublishingTrainer):
    """Checkpoints of `Trainer`, written aside and moved to their place once they are whole and on the disk.

    So a process that is killed, or a disk that runs full, leaves the checkpoints before as they were and no half one
    that could be taken for the last. Old checkpoints are deleted and new ones pushed only after that.

    Raises:
        ValueError: If `args.enable_jit_checkpoint` is set.
    """

    distiller: Distiller
    _saving = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint saves within a step, which can't be resumed exactly. Leave it out: SIGTERM is "
                "answered with a checkpoint anyway."
            )
        self._interruption = Interruption()
        self.add_callback(self._interruption)
        self._best = _BestCheckpoint()
        self.add_callback(self._best)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer` does, after a check that the run can go on from the checkpoint as if it had never stopped.

        Args:
            resume_from_checkpoint: Folder of a checkpoint; True or "last" for that of the highest step in the output
                folder which is whole.
            *args: As in `Trainer`.
            **kwargs: As in `Trainer`.

        Raises:
            ValueError: If the checkpoint is damaged, or that of a run which this one can't go on with.
            SystemExit: With code 143 after SIGTERM, when the checkpoint of the step in work is written.
        """
        folder = Path(self.args.output_dir)
        if self.args.should_save:
            _tidy(folder / UNFINISHED)
        self.accelerator.wait_for_everyone()  # before one looks for checkpoints, or writes one
        if resume_from_checkpoint in (True, "last"):
            resume_from_checkpoint = str(newest_whole(folder))
        self._best.resumed = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self.resumed_from_step = None
        if resume_from_checkpoint:
            self._check_resumable(Path(resume_from_checkpoint))
            state = TrainerState.load_from_json(os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME))
            self.resumed_from_step = state.global_step
        elif earlier := checkpoints_in(folder):
            logger.warning(
                f"{folder} holds checkpoints of an earlier run, up to {earlier[0].name}: resuming from the last one "
                "takes that of the highest step, whichever run it is of. Choose another output_dir, or delete them."
            )
        self.accelerator.wait_for_everyone()  # all have looked, before a checkpoint is written
        with self._interruption.listening():
            try:
                output = super().train(resume_from_checkpoint, *args, **kwargs)
            except SystemExit:
                self.callback_handler.on_train_end(self.args, self.state, self.control)  # trackers write what they have
                raise
            if self._interruption.told(self.args):
                self._save_finished_run()
                raise SystemExit(EXIT_CODE)
        return output

    def _save_finished_run(self) -> None:
        """For SIGTERM after the last step: its checkpoint, unless it is there, or the best student is in its place."""
        self._interruption.stopping = True
        last = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if not (last / RECORD_FILE).is_file() and not self.args.load_best_model_at_end:
            self._save_checkpoint(self.model, trial=None)
        if self.is_world_process_zero():
            logger.warning(
                f"SIGTERM came after the run's last step, {self.state.global_step}. --resume_from_checkpoint last "
                f"evaluates and saves the student. Exiting with code {EXIT_CODE}."
            )

    def _check_resumable(self, checkpoint: Path) -> None:
        check_files(checkpoint)
        changed = differences(checkpoint, self._settings)
        if self.args.ignore_data_skip:
            changed.append("stopped within an epoch, perhaps; with ignore_data_skip its images are drawn anew")
        for sentence in changed:
            logger.warning(f"{checkpoint} was {sentence}. The run goes on, but not as it would have without the stop.")

    @cached_property
    def _settings(self) -> dict[str, Any]:
        student = self.distiller.network  # with its taps
        return run_settings(
            self.args, self.train_dataset, student, self.bare_teacher, self.processing_class, self.distiller.loss
        )

    def _run_epoch(self, *args: Any, train_dataloader: Any, **kwargs: Any) -> None:
        """As `Trainer`, but no step more when the checkpoint that was resumed is that of the last step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # One that a subclass gives may be no accelerate's, and is then its own.
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        if isinstance(loader, DataLoader) and loader._iterator is not None:
            # Workers that live on (dataloader_persistent_workers) get no new seed from the generator that dropout
            # draws from too. New ones, after a resume, do; so it is drawn for the living as well.
            torch.empty((), dtype=torch.int64).random_()
        super()._run_epoch(*args, train_dataloader=train_dataloader, **kwargs)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        inner = loader.base_dataloader
        inner.worker_init_fn = partial(start_deaf_worker, inner.worker_init_fn)
        return loader

    # --- saving ---

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        run_folder = Path(self._get_output_dir(trial))
        run_folder.mkdir(parents=True, exist_ok=True)
        checkpoint, unfinished = run_folder / name, run_folder / UNFINISHED / name
        with self._aside(unfinished.parent):
            with self._in_full():
                super()._save_checkpoint(model, trial)
            if self.state.best_model_checkpoint == str(unfinished):
                self.state.best_model_checkpoint = str(checkpoint)
            self.accelerator.wait_for_everyone()  # all processes have written their part
            if self.args.should_save:
                self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
                write_record(unfinished, self._settings)
                flush(unfinished, *unfinished.rglob("*"))
                if checkpoint.exists():  # of an earlier run, or the same step saved for two reasons
                    checkpoint.rename(unfinished.with_name(name + REPLACED))
                unfinished.rename(checkpoint)
                flush(run_folder)
                shutil.rmtree(unfinished.parent)
        self.accelerator.wait_for_everyone()  # it is in its place
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(run_folder), self.args.save_total_limit, best, use_mtime=True)

    @contextlib.contextmanager
    def _in_full(self) -> Iterator[None]:
        """Inside, `save_only_model` is off when SIGTERM asked for the checkpoint, from which the run shall go on."""
        only_model = self.args.save_only_model
        self.args.save_only_model = only_model and not self._interruption.stopping
        try:
            yield
        finally:
            self.args.save_only_model = only_model

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._saving:  # when it is whole
            super()._push_from_checkpoint(checkpoint_folder)

    @contextlib.contextmanager
    def _aside(self, unfinished: Path) -> Iterator[None]:
        """Inside, a checkpoint is written aside; of one that fails nothing stays, and the error says how it stands."""
        self._saving = True
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch and safetensors have errors of their own
            free = shutil.disk_usage(unfinished.parent).free  # with what was written
            if self.args.should_save:
                _tidy(unfinished)
            needed = num_bytes([self.model.state_dict(), self.optimizer.state_dict()])
            last = next(iter(checkpoints_in(unfinished.parent)), "missing: it was the first")
            raise OSError(
                f"The checkpoint of step {self.state.global_step} could not be written: {error}\nIt takes about "
                f"{needed / 1e6:.1f} MB; {free / 1e6:.1f} MB were free in {unfinished.parent} when it failed. What was "
                f"written of it is deleted; the newest checkpoint is {last}. Make room "
                "(save_total_limit keeps fewer checkpoints) and resume."
            ) from error
        finally:
            self._saving = False
            if self.args.should_save:
                _tidy(unfinished)


def _tidy(unfinished: Path) -> None:
    """Delete what is unfinished; a checkpoint that had made room for one which never came goes back to its place."""
    for replaced in unfinished.glob(f"*{REPLACED}"):
        checkpoint = unfinished.with_name(replaced.name.removesuffix(REPLACED))
        if not checkpoint.exists():
            replaced.rename(checkpoint)
    shutil.rmtree(unfinished, ignore_errors=True)


class _BestCheckpoint(TrainerCallback):
    """Finds the best checkpoint beside the one that is resumed, wherever the run's folder was moved to.

    `Trainer` saves its path, and keeps it from being deleted by comparing paths as they are written.
    """

    resumed: Path | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.resumed is None:
            return
        best = TrainerState.load_from_json(str(self.resumed / TRAINER_STATE_NAME)).best_model_checkpoint
        if best is None:
            return
        folder, output = self.resumed.parent, Path(args.output_dir)
        here = (output if output.is_dir() and output.samefile(folder) else folder) / Path(best).name
        if here.is_dir():
            if state.best_model_checkpoint is None:
                logger.warning(f"The best checkpoint is not lost: the run's folder was moved, it is {here} now.")
            state.best_model_checkpoint = str(here)
