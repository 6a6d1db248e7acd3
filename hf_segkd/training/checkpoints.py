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

from hf_segkd.arguments import DistillationArguments
from hf_segkd.data import AugmentedDataset
from hf_segkd.teachers.adapted import AdaptedTeacher

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
    files = {file.name: file.stat().st_size for file in sorted(checkpoint.iterdir()) if file.suffix in _BINARY}
    (checkpoint / RECORD_FILE).write_text(json.dumps({**settings, "files": files}, indent=2))


def check_files(checkpoint: Path) -> None:
    """Make sure that a checkpoint is whole, and that reading it can not run what somebody put into a pickle.

    Raises:
        ValueError: If it is not; names the file.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"There is no checkpoint folder {checkpoint}.")
    if not (checkpoint / RECORD_FILE).is_file():
        raise ValueError(
            f"{checkpoint} holds no {RECORD_FILE}, the record of a run that can be resumed: it is a finished student, "
            "or was not written by hf_segkd. Resume from a checkpoint-* folder, or pass the folder as the student "
            "(--student) to start anew from its weights."
        )
    sizes = _read_json(checkpoint / RECORD_FILE)["files"]
    if OPTIMIZER_NAME not in sizes:
        raise ValueError(
            f"{checkpoint} was saved with save_only_model, without the state of the optimizer: it can't be resumed. "
            "Pass it as the student (--student) to start anew from its weights."
        )
    _read_json(checkpoint / TRAINER_STATE_NAME)
    for name, size in sizes.items():
        file = checkpoint / name
        actual = file.stat().st_size if file.is_file() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes of {size}"
            raise ValueError(f"{file} {state}: the checkpoint is damaged.{_advice(checkpoint)}")
    for file in sorted(checkpoint.iterdir()):
        if file.suffix in _BINARY:
            _check_readable(file)


def differences(checkpoint: Path, now: dict[str, Any]) -> list[str]:
    """How a run differs from that of a checkpoint in what may differ, each as a sentence.

    Args:
        checkpoint: Folder.
        now: `run_settings` of this run.

    Raises:
        ValueError: If they differ in what must be the same, with all of that.
    """
    then = _read_json(checkpoint / RECORD_FILE)
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


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} can't be read: {error}.{_advice(file.parent)}") from error


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
            f"run ({type(error).__name__}: {reason}).{_advice(file.parent)}"
        ) from error


def _advice(checkpoint: Path) -> str:
    """The checkpoint before this one, to take instead."""

    def step(folder: Path) -> int:
        number = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        return int(number) if number.isdecimal() else -1

    older = [folder for folder in checkpoint.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if step(folder) >= 0]
    older = sorted((folder for folder in older if step(folder) < step(checkpoint)), key=step)
    return f" Resume from the one before: {older[-1]}." if older else ""
