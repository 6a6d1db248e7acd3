"""`CheckpointWriter`: stages, records and moves checkpoints, so that each is whole or not there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from hf_segkd.training.checkpoints import checkpoints_in, fsync, num_bytes, write_record

# Staging folder in the run's folder: a checkpoint is written there and moved to its place when it is whole.
UNFINISHED = "unfinished"
# End of the name of an earlier checkpoint of the same step, which waits in the staging folder until it is replaced.
REPLACED = "-replaced"


class CheckpointWriter:
    """Writes each checkpoint into a staging folder, and moves it to its place once it is whole and on the disk.

    A process that is killed, or a disk that runs full, leaves the earlier checkpoints as they were, and no incomplete
    one that could be taken for the last.

    Args:
        folder: Folder of the run; checkpoints are its subfolders.
        saves: Whether this process writes what all processes share (`args.should_save`).
        wait: Function that waits for all processes.
    """

    def __init__(self, folder: Path, saves: bool, wait: Callable[[], None]) -> None:
        self.folder = folder
        self.saves = saves
        self.wait = wait
        self._is_staging = False

    @property
    def output_dir(self) -> Path:
        """Where a checkpoint is to be written now: the staging folder inside `staged`, else the run's folder."""
        return self.folder / UNFINISHED if self._is_staging else self.folder

    def clear_staging(self) -> None:
        """Delete what was not finished; call it on all processes.

        An earlier checkpoint whose replacement never came goes back to its place.
        """
        if not self.saves:
            return
        for replaced in (self.folder / UNFINISHED).glob(f"*{REPLACED}"):
            checkpoint = self.folder / replaced.name.removesuffix(REPLACED)
            if not checkpoint.exists():
                replaced.rename(checkpoint)
        shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)

    @contextlib.contextmanager
    def staged(
        self, state: TrainerState, settings: dict[str, Any], contents: Sequence[nn.Module | Optimizer]
    ) -> Iterator[Path]:
        """Inside, write a checkpoint into `output_dir`; afterwards it is in its place. Call it on all processes.

        Args:
            state: State of the run; saved anew, because what Trainer saved names the staging folder.
            settings: Settings of the run (see `run_settings`), for the checkpoint's record.
            contents: What takes most of the space, to report how much is needed when the disk is full.

        Yields:
            The final place of the checkpoint.

        Raises:
            OSError: If something could not be written; nothing of the checkpoint is left then.
        """
        checkpoint = self.folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._is_staging = True
        try:
            yield checkpoint
            self._finish(self.output_dir / checkpoint.name, checkpoint, state, settings)
        except (OSError, RuntimeError, SafetensorError) as error:  # PyTorch and safetensors have errors of their own
            free = shutil.disk_usage(self.folder).free  # with what was written
            self.clear_staging()
            raise OSError(self._failure(state.global_step, error, free, contents)) from error
        finally:
            self._is_staging = False
            self.clear_staging()
        self.wait()  # until it is in its place

    def delete_old(self, limit: int | None, best: str | None) -> None:
        """Delete all but the newest `limit` checkpoints, and never the best one."""
        if self.saves:
            rotate_checkpoints(str(self.folder), limit, best, use_mtime=True)

    def _finish(self, staged: Path, checkpoint: Path, state: TrainerState, settings: dict[str, Any]) -> None:
        if state.best_model_checkpoint == str(staged):
            state.best_model_checkpoint = str(checkpoint)
        self.wait()  # until all processes have written their part
        if not self.saves:
            return
        state.save_to_json(str(staged / TRAINER_STATE_NAME))
        write_record(staged, settings)
        fsync(staged, *staged.rglob("*"))
        if checkpoint.exists():  # from an earlier run, or the same step saved for two reasons
            checkpoint.rename(staged.with_name(checkpoint.name + REPLACED))
        staged.rename(checkpoint)
        fsync(self.folder)
        shutil.rmtree(staged.parent)

    def _failure(self, step: int, error: Exception, free: int, contents: Sequence[nn.Module | Optimizer]) -> str:
        needed = num_bytes([part.state_dict() for part in contents])
        last = next(iter(checkpoints_in(self.folder)), "missing: it was the first")
        return (
            f"The checkpoint of step {step} could not be written: {error}\nIt takes about {needed / 1e6:.1f} MB; "
            f"{free / 1e6:.1f} MB were free in {self.folder} when it failed. What was written of it is deleted; the "
            f"newest checkpoint is {last}. Make room (save_total_limit keeps fewer checkpoints) and resume."
        )
