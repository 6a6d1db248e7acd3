"""What lies in a checkpoint beside the student: a record of the run and of the files, checked before resuming."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, logging

from hf_segkd.arguments import DistillationArguments
from hf_segkd.data import AugmentedDataset
from hf_segkd.teachers.adapted import AdaptedTeacher

logger = logging.get_logger(__name__)

# Written last into a checkpoint: what the run was, and how long each file is.
RECORD_FILE = "distillation.json"
# Where PyTorch's format holds them, tensors lie in a pickle; they are read without running what pickles can run.
_PICKLES = {".pt", ".pth", ".bin"}
_BINARY = {".safetensors", *_PICKLES}

# Resuming can't follow these: the state that was saved, or the order of the images, is that of the old value. The
# optimizer takes its rates and decays from its state, so that new ones would be ignored without a word.
_MUST_AGREE = (
    "method",
    "method_kwargs",
    "teacher_dtype",
    "seed",
    "data_seed",
    "dataloader_drop_last",
    "train_sampling_strategy",
    "frozen",
    "optim",
    "optim_args",
    "learning_rate",
    "scale_lr",
    "head_lr_multiplier",
    "connector_lr_multiplier",
    "weight_decay",
)
# Beginnings of the names of arguments that have no bearing on the student's weights; others are warned about.
_WITHOUT_BEARING = (
    *("batch_eval", "dataloader_in", "dataloader_m", "dataloader_num", "dataloader_p", "ddp_", "debug", "disable_tqdm"),
    *("do_", "enable_jit", "eval", "greater_is_better", "hub_", "ignore_data_skip", "include_", "label_names"),
    *("length_column", "load_best", "local_rank", "log", "metric_for_best", "output_dir", "per_device_eval"),
    *("prediction_loss", "project", "push_", "recipe_batch", "report_to", "resume_from", "run_name", "save_"),
    *("skip_memory", "trackio_", "use_cache", "allow_weak", "preflight"),
)


def run_settings(
    args: DistillationArguments, train_dataset: Dataset | None, student: nn.Module, teacher: nn.Module | None
) -> dict[str, Any]:
    """What makes a run the one it is, as JSON has it.

    Images are told by their `image_id`, so that the same data set may lie elsewhere; of a data set that is not of
    `load_segmentation_dataset` only the number of images is known.
    """
    parts = []
    if isinstance(train_dataset, AugmentedDataset):
        parts = [train_dataset.dataset, *([train_dataset.unlabelled] if train_dataset.unlabelled else [])]
    classes = teacher.class_map if isinstance(teacher, AdaptedTeacher) else None
    arguments = json.loads(args.to_json_string())
    settings = {
        "arguments": {name: arguments[name] for name in arguments if not name.startswith(_WITHOUT_BEARING)},
        "images per step": args.images_per_step,
        "processes": args.world_size,
        "training images": None if train_dataset is None else len(train_dataset),
        "names of the training images": [_digest_of_names(images) for images in parts],
        "teacher": None if teacher is None else digest(teacher),
        "class map": None if classes is None else classes.targets,
        "student": _architecture(student),
    }
    return json.loads(json.dumps(settings))


def digest(module: nn.Module) -> str:
    """SHA-256 of the parameters and buffers of a module, with their names."""
    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def write_record(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Write the record of a checkpoint whose other files are there."""
    files = {
        # The length of JSON, which tells itself whether it is whole, may change: paths are taken out for the Hub.
        file.name: file.stat().st_size if file.suffix in _BINARY else None
        for file in sorted(checkpoint.iterdir())
        if file.suffix in {".json", *_BINARY}
    }
    (checkpoint / RECORD_FILE).write_text(json.dumps({**settings, "files": files}, indent=2))


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders `checkpoint-STEP` in a folder, that of the highest step first; empty where there is no folder."""
    numbered = {}
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdecimal() and checkpoint.is_dir():
            numbered[int(step)] = checkpoint
    return [numbered[step] for step in sorted(numbered, reverse=True)]


def newest_whole(folder: Path) -> Path:
    """The checkpoint of the highest step that can be resumed; those after it are warned about.

    Raises:
        ValueError: If there is none; with the reasons.
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
    """Make sure that a checkpoint is whole, and that reading it can not run what somebody put into a pickle.

    Raises:
        ValueError: If it is not; names the file, and the checkpoint before this one.
    """
    try:
        _require_whole(checkpoint)
    except ValueError as error:
        all_there = checkpoints_in(checkpoint.parent)
        older = all_there[all_there.index(checkpoint) + 1 :] if checkpoint in all_there else []
        if not older:
            raise
        raise ValueError(f"{error} Resume from the one before: {older[0]}.") from error


def differences(checkpoint: Path, now: dict[str, Any]) -> list[str]:
    """How a run differs from that of a checkpoint in what may differ, each as a sentence.

    Args:
        checkpoint: Folder.
        now: `run_settings` of this run.

    Raises:
        ValueError: If they differ in what must be the same, with all of that.
    """
    then = _read_record(checkpoint)
    refused, accepted = _differences_of_arguments(then["arguments"], now["arguments"])
    for name in (
        "images per step",
        "training images",
        "names of the training images",
        "teacher",
        "class map",
        "student",
    ):
        if then[name] != now[name]:
            refused.append(_sentence(name, then[name], now[name]))
    if then["processes"] != now["processes"]:
        accepted.append(f"trained by {then['processes']} processes, this run has {now['processes']}")
    if refused:
        listed = "\n".join(f"- {line}" for line in refused)
        raise ValueError(
            f"{checkpoint} can't be resumed by this run. It was\n{listed}\nResume with the same settings, or pass the "
            f"folder as the student (--student {checkpoint}) to start anew from its weights."
        )
    return accepted


def flush(*paths: Path) -> None:
    """Have the disk hold files and folders, so that a power cut can't take them. POSIX only."""
    if os.name == "posix":
        for path in paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def num_bytes(state: Any) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(num_bytes(part) for part in parts)


def _differences_of_arguments(then: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], list[str]]:
    refused, accepted = [], []
    for name in now:
        # An argument that a newer version brought was not there.
        if name in then and then[name] != now[name]:
            sentence = f"trained with {name} {then[name]!r}, this run has {now[name]!r}"
            if name in _MUST_AGREE:
                refused.append(sentence)
            else:
                accepted.append(sentence)
    return refused, accepted


def _sentence(name: str, then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        pairs = ", ".join(f"{key} {then.get(key)!r} (this run: {now.get(key)!r})" for key in changed)
        return f"of a {name} with {pairs}"
    if name == "teacher":
        return f"taught by a teacher whose weights have the SHA-256 {then}, those of this run's teacher have {now}"
    return f"trained with {name}: {then}, this run has {now}"


def _architecture(student: nn.Module) -> dict[str, Any]:
    """The student's config without what says nothing of the network."""
    config = json.loads(student.config.to_json_string(use_diff=False))
    return {name: value for name, value in config.items() if name not in _NOT_OF_THE_NETWORK}


_NOT_OF_THE_NETWORK = {"_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "use_cache"}


def _digest_of_names(images: datasets.Dataset) -> str:
    names = images.with_format(None)["image_id"]
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()


def _require_whole(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise ValueError(f"There is no checkpoint folder {checkpoint}.")
    if not (checkpoint / RECORD_FILE).is_file():
        raise ValueError(f"{checkpoint} can't be resumed: {_why_without_record(checkpoint)}")
    sizes = _read_record(checkpoint)["files"]
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


def _read_record(checkpoint: Path) -> dict[str, Any]:
    record = _read_json(checkpoint / RECORD_FILE)
    if not isinstance(record, dict) or not {"arguments", "files"} <= record.keys():
        raise ValueError(f"{checkpoint / RECORD_FILE} is not the record of a run: the checkpoint is damaged.")
    return record


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read: {error}. The checkpoint is damaged.") from error


def _check_readable(file: Path) -> None:
    """Read what is needed: tensors and plain values. What else a pickle holds is not run."""
    try:
        if file.suffix in _PICKLES:
            with safe_globals():
                torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        else:
            with safe_open(file, "pt"):
                pass
    except Exception as error:  # of many kinds: damaged files are not what any of the readers expects
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{file} is not what was saved: it is damaged, or holds more than tensors and plain values, which is never "
            f"run ({type(error).__name__}: {reason})."
        ) from error
