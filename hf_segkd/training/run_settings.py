"""What makes a run the one it is: recorded in its checkpoints, compared before it is resumed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import Dataset

from hf_segkd.data import AugmentedDataset
from hf_segkd.data.image_processors import normalisation, reverses_channels
from hf_segkd.losses import AbstractDistillationLoss
from hf_segkd.networks import ForeignNetwork
from hf_segkd.networks.adapted_teacher import AdaptedTeacher
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.checkpoints import read_record
from hf_segkd.training.own_loss import record_of

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
    "repeat_threshold",
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
    *("average_tokens", "bad_images", "restore_callback", "torch_empty_cache"),
    *("prediction_loss", "project", "push_", "recipe_batch", "report_to", "resume_from", "run_name", "save_"),
    *("skip_memory", "trackio_", "use_cache", "allow_weak", "preflight"),
)
# Other parts of the record that must be the same.
_PARTS = (
    *("loss", "images per step", "scaled learning rate", "training images", "names of the training images"),
    *("teacher", "teacher's config", "teacher's taps", "teacher's pixels", "class map", "student", "student's taps"),
)
# What a config says beside the network.
_NOT_OF_THE_NETWORK = {"_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "use_cache"}


def run_settings(
    args: DistillationArguments,
    train_dataset: Dataset | None,
    student: nn.Module,
    teacher: nn.Module | None,
    processor: Any = None,
    loss: AbstractDistillationLoss | None = None,
) -> dict[str, Any]:
    """What makes a run the one it is, as JSON has it.

    Images are told by their `image_id`, so that the same data set may lie elsewhere; of a data set that is not of
    `load_segmentation_dataset` only the number of images is known.

    Args:
        args: Of the run.
        train_dataset: As the trainer has it.
        student: The student.
        teacher: The teacher, None without one.
        processor: The student's image processor; it makes the pixels of an `AugmentedDataset`.
        loss: The distillation loss, None without one; `args` tells those of hf_segkd.
    """
    parts = []
    if isinstance(train_dataset, AugmentedDataset):
        parts = [train_dataset.dataset, *([train_dataset.unlabelled] if train_dataset.unlabelled else [])]
    adapted = isinstance(teacher, AdaptedTeacher)
    network = teacher.network if adapted else teacher
    arguments = json.loads(args.to_json_string())
    if args.max_steps > 0:
        del arguments["num_train_epochs"]  # which max_steps overrides
    settings = {
        "arguments": {name: arguments[name] for name in arguments if not name.startswith(_WITHOUT_BEARING)},
        "loss": record_of(loss),
        "images per step": args.images_per_step,
        "scaled learning rate": args.scaled_learning_rate if args.scale_lr else None,
        "processes": args.world_size,
        "training images": None if train_dataset is None else len(train_dataset),
        "names of the training images": [_digest_of_names(images) for images in parts],
        "image processor": _pixels(processor) if parts else None,
        "teacher": None if teacher is None else digest(teacher),
        # Without its names, for the class map says what they come to.
        "teacher's config": None if teacher is None else _config(network, without=("id2label", "label2id")),
        "teacher's taps": _taps(network),
        "teacher's pixels": _renormalisation(teacher) if adapted else None,
        "class map": teacher.class_map.targets if adapted and teacher.class_map is not None else None,
        "student": _config(student),
        "student's taps": _taps(student),
    }
    return json.loads(json.dumps(settings))


def digest(module: nn.Module) -> str:
    """SHA-256 of the parameters and buffers of a module, with their names."""
    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def differences(checkpoint: Path, now: dict[str, Any]) -> list[str]:
    """How a run differs from that of a checkpoint in what may differ, each as a sentence.

    What only one of the two records has was brought, or dropped, by another version, and is not compared.

    Args:
        checkpoint: Folder.
        now: `run_settings` of this run.

    Raises:
        ValueError: If they differ in what must be the same, with all of that.
    """
    then = read_record(checkpoint)
    refused, accepted = _differences_of_arguments(then["arguments"], now["arguments"])
    for name in _PARTS:
        refused += _differences_of_part(name, then, now)
    accepted += _differences_of_part("image processor", then, now)
    if then.get("processes", now["processes"]) != now["processes"]:
        accepted.append(f"trained by {then['processes']} processes, this run has {now['processes']}")
    if refused:
        listed = "\n".join(f"- {line}" for line in refused)
        raise ValueError(
            f"{checkpoint} can't be resumed by this run. It was\n{listed}\nResume with the same settings, or pass the "
            f"folder as the student (--student {checkpoint}) to start anew from its weights."
        )
    return accepted


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


def _differences_of_part(name: str, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    if name not in then or then[name] == now[name]:
        return []
    before, after = then[name], now[name]
    if isinstance(before, dict) and isinstance(after, dict):
        before, after = _flat(before), _flat(after)
        changed = [key for key in before if key in after and before[key] != after[key]]
        pairs = ", ".join(f"{key} {before[key]!r} (this run: {after[key]!r})" for key in changed)
        return [f"of a run whose {name} has {pairs}"] if changed else []
    if name == "teacher":
        return [
            f"taught by a teacher whose weights have the SHA-256 {before}, those of this run's teacher have {after}"
        ]
    if name.startswith("teacher's") and None in (then.get("teacher"), now["teacher"]):
        return []  # there is no teacher, which is told
    return [f"trained with {name}: {before}, this run has {after}"]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Path -> value of what tells of the network, in a config and in the configs within it."""
    found = {}
    for name, value in config.items():
        if isinstance(value, dict) and "model_type" in value:
            found |= _flat(value, f"{prefix}{name}.")
        elif name not in _NOT_OF_THE_NETWORK:
            found[prefix + name] = value
    return found


def _config(network: nn.Module, without: tuple[str, ...] = ()) -> dict[str, Any]:
    config = json.loads(network.config.to_json_string(use_diff=False))
    return _flat({name: value for name, value in config.items() if name not in without})


def _taps(network: nn.Module | None) -> dict[str, str] | None:
    """Tap -> module, of a network that does not name its taps itself."""
    return {tap: str(path) for tap, path in network.taps.items()} if isinstance(network, ForeignNetwork) else None


def _pixels(processor: Any) -> dict[str, Any]:
    """What an image processor makes of pixels."""
    size = dict(processor.size) if processor.do_resize else None
    return {"size": size, **normalisation(processor), "reverses channels": reverses_channels(processor)}


def _renormalisation(teacher: AdaptedTeacher) -> dict[str, Any] | None:
    """From the student's pixels to the teacher's."""
    change = teacher.renormalisation
    if change is None:
        return None
    constants = {name: getattr(change, name).flatten().tolist() for name in ("scale", "offset")}
    return {**constants, "reverses channels": change.reverses}


def _digest_of_names(images: datasets.Dataset) -> str:
    names = images.with_format(None)["image_id"]
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()
