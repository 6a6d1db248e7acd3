"""`check_files`, `newest_whole`: whether a checkpoint's files are whole, and which checkpoint can be resumed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, logging

from hf_segkd.evaluation.reports import ARGUMENTS_FILE, read_json, write_json
from hf_segkd.publishing.privacy import shareable

logger = logging.get_logger(__name__)

# Written last into a checkpoint: the settings of the run, and the length of each file.
RECORD_FILE = "distillation.json"
# PyTorch's format holds tensors in a pickle; they are read without running the code that a pickle may hold.
_PICKLES = {".pt", ".pth", ".bin"}
_BINARY = {".safetensors", *_PICKLES}


def write_record(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Write the record of a checkpoint whose other files are there."""
    files = {
        # The length of JSON may change, because paths are removed for the Hub; its syntax shows whether it is whole.
        file.name: file.stat().st_size if file.suffix in _BINARY else None
        for file in sorted(checkpoint.iterdir())
        if file.suffix in {".json", *_BINARY}
    }
    (checkpoint / RECORD_FILE).write_text(json.dumps({**settings, "files": files}, indent=2))


def read_record(checkpoint: Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        ValueError: If it can't be read, or is no such record.
    """
    record = _read_json(checkpoint / RECORD_FILE)
    if not isinstance(record, dict) or not {"arguments", "files"} <= record.keys():
        raise ValueError(f"{checkpoint / RECORD_FILE} is not the record of a run: the checkpoint is damaged.")
    return record


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders `checkpoint-STEP` in a folder, that of the highest step first; empty where there is no folder."""
    numbered = {}
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdecimal() and checkpoint.is_dir():
            numbered[int(step)] = checkpoint
    return [numbered[step] for step in sorted(numbered, reverse=True)]


def wanted_checkpoint(wanted: str | bool, folder: Path) -> Path:
    """The checkpoint that is asked for: a folder; True or "last" for that of the highest step in the run's folder.

    Raises:
        ValueError: As `newest_whole`.
    """
    return newest_whole(folder) if wanted in (True, "last") else Path(wanted)


def batch_size_of(wanted: str | bool, folder: Path) -> int | None:
    """Images per device and batch that the run of a checkpoint trained with; None where Trainer did not record it.

    Raises:
        ValueError: As `check_files` and `newest_whole`.
    """
    checkpoint = wanted_checkpoint(wanted, folder)
    check_files(checkpoint)
    return read_json(checkpoint / TRAINER_STATE_NAME).get("train_batch_size")


def newest_whole(folder: Path) -> Path:
    """The checkpoint of the highest step that can be resumed; those after it are warned about.

    Raises:
        ValueError: If there is none; the message has the reasons.
    """
    reasons = []
    for checkpoint in checkpoints_in(folder):
        try:
            _require_whole(checkpoint)
        except ValueError as error:
            logger.warning(f"{error} Passed over; the checkpoint before it is tried.")
            reasons.append(f"\n- {error}")
        else:
            return checkpoint
    if not reasons:
        raise ValueError(f"There is no checkpoint in {folder} to resume from.")
    raise ValueError(f"No checkpoint in {folder} can be resumed:{''.join(reasons)}")


def check_files(checkpoint: Path) -> None:
    """Make sure that a checkpoint is whole, and that reading it can not run code in a pickle.

    Raises:
        ValueError: If it is not; the message names the file, and the checkpoint before this one.
    """
    try:
        _require_whole(checkpoint)
    except ValueError as error:
        all_there = checkpoints_in(checkpoint.parent)
        older = all_there[all_there.index(checkpoint) + 1 :] if checkpoint in all_there else []
        if not older:
            raise
        raise ValueError(f"{error} Resume from the one before: {older[0]}.") from error


def fsync(*paths: Path) -> None:
    """Flush files and folders to the disk, so that they survive a power cut. POSIX only."""
    if os.name == "posix":
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def copy_without_machine(checkpoint: Path, copy: Path) -> None:
    """Copy a checkpoint, without the folders and secrets of this machine, which resuming does not need."""
    shutil.copytree(checkpoint, copy)
    for name in (ARGUMENTS_FILE, RECORD_FILE, TRAINER_STATE_NAME):
        file = copy / name
        if file.is_file():  # there is no state with save_only_model
            write_json(shareable(read_json(file)), file)


def num_bytes(state: Any) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(num_bytes(part) for part in parts)


def _require_whole(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise ValueError(f"There is no checkpoint folder {checkpoint}.")
    if not (checkpoint / RECORD_FILE).is_file():
        raise ValueError(f"{checkpoint} can't be resumed: {_why_without_record(checkpoint)}")
    sizes = read_record(checkpoint)["files"]
    if OPTIMIZER_NAME not in sizes:
        raise ValueError(
            f"{checkpoint} was saved with save_only_model, without the state of the optimizer: it can't be resumed. "
            "Pass it as the student (--student) to start anew from its weights."
        )
    for name, size in {CONFIG_NAME: None, TRAINER_STATE_NAME: None, **sizes}.items():
        file = checkpoint / name
        actual = file.stat().st_size if file.is_file() else None
        if actual is None or size not in (None, actual):
            state = "is missing" if actual is None else f"has {actual} bytes of {size}"
            raise ValueError(f"{file} {state}: the checkpoint is damaged.")
    for file in sorted(checkpoint.iterdir()):
        if file.suffix in _BINARY:
            _check_readable(file)
        elif file.suffix == ".json":
            _read_json(file)


def _why_without_record(checkpoint: Path) -> str:
    if not any(checkpoint.iterdir()):
        return "it is empty."
    if (checkpoint / TRAINER_STATE_NAME).is_file() or checkpoint.name.startswith(PREFIX_CHECKPOINT_DIR):
        return (
            f"it holds no {RECORD_FILE}, which is written last. So it is not whole, or it was written by an earlier "
            "version of hf_segkd or by something else, and nothing tells whether it is whole. If it holds weights, "
            "pass it as the student (--student) to start anew from them."
        )
    return (
        f"it holds no {RECORD_FILE}, the record of a run: it is a finished student, or was not written by hf_segkd. "
        "Resume from a checkpoint-* folder, or pass the folder as the student (--student) to start anew from its "
        "weights."
    )


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read: {error}. The checkpoint is damaged.") from error


def _check_readable(file: Path) -> None:
    """Read what is needed: tensors and plain values. Code in a pickle is not run."""
    try:
        if file.suffix in _PICKLES:
            with safe_globals():
                torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        else:
            with safe_open(file, "pt"):
                pass
    except Exception as error:  # damaged files raise errors of many kinds in the readers
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{file} is not what was saved: it is damaged, or holds more than tensors and plain values, which is never "
            f"run ({type(error).__name__}: {reason})."
        ) from error
