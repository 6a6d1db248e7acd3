"""`run_settings`, `checkpoint_to_resume`: a run's settings, recorded in checkpoints and compared before it resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.utils import logging

from hf_segkd.data import AugmentedDataset, TrainingStream
from hf_segkd.data.image_processors import normalisation, reverses_channels
from hf_segkd.evaluation.argument_roles import OnResume, role_of
from hf_segkd.losses import AbstractDistillationLoss
from hf_segkd.networks import FeatureNetwork, FeatureReader, LogitsNetwork
from hf_segkd.networks.arithmetic import Arithmetic
from hf_segkd.networks.class_names import CLASS_NAMES, config_values
from hf_segkd.networks.teacher import Renormalisation, Teacher
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.checkpoints import check_files, checkpoints_in, read_record, wanted_checkpoint
from hf_segkd.training.own_loss import record_of

logger = logging.get_logger(__name__)

# Other parts of the record that must be the same.
_PARTS = (
    *("loss", "images per step", "scaled learning rate", "training images", "names of the training images"),
    *("stream", "teacher", "teacher's config", "teacher's taps", "teacher's pixels", "class map"),
    *("student", "student's taps"),
)

_ARITHMETIC = "teacher's arithmetic"


def run_settings(
    args: DistillationArguments,
    train_dataset: Dataset | None,
    student: nn.Module | FeatureReader,
    teacher: Teacher | None,
    processor: Any = None,
    loss: AbstractDistillationLoss | None = None,
) -> dict[str, Any]:
    """The settings that identify a run, as JSON values.

    Images are recorded by their `image_id`, so that the same data set may lie elsewhere. A data set of tensors is
    recorded by its number of images only, a stream by how it is shuffled and shared by workers.

    Args:
        args: Arguments of the run.
        train_dataset: The trainer's training data set.
        student: The student.
        teacher: The teacher, None without one.
        processor: The student's image processor; it makes the pixels of an `AugmentedDataset`.
        loss: The distillation loss, None without one; `args` names those of hf_segkd.
    """
    parts = []
    if isinstance(train_dataset, AugmentedDataset):
        parts = [train_dataset.dataset, *([train_dataset.unlabelled] if train_dataset.unlabelled else [])]
    stream = isinstance(train_dataset, TrainingStream)
    arguments = json.loads(args.to_json_string())
    if args.max_steps > 0:
        del arguments["num_train_epochs"]  # which max_steps overrides
    settings = {
        "arguments": {
            name: value for name, value in arguments.items() if role_of(name).on_resume is not OnResume.IRRELEVANT
        },
        "loss": record_of(loss),
        "images per step": args.images_per_step,
        "scaled learning rate": args.scaled_learning_rate if args.scale_lr else None,
        "processes": args.world_size,
        "training images": None if train_dataset is None or stream else len(train_dataset),
        "names of the training images": [_digest_of_names(images) for images in parts],
        "stream": {"shuffled": train_dataset.order, "workers": max(1, args.dataloader_num_workers)} if stream else None,
        "image processor": _pixels(processor) if parts or stream else None,
        **_of_teacher(teacher),
        "student": _config(student),
        "student's taps": _taps(student),
    }
    # NaN and infinity are stored as words: JSON does not have them, and NaN would differ from itself.
    return json.loads(json.dumps(settings), parse_constant=str)


def with_arithmetic(settings: dict[str, Any], teacher: Teacher | None) -> dict[str, Any]:
    """The settings and, of a teacher that measured it, how it computes: a resumed run follows that."""
    if teacher is None or teacher.arithmetic is None:
        return settings
    return {**settings, _ARITHMETIC: teacher.arithmetic._asdict()}


def recorded_arithmetic(checkpoint: Path) -> Arithmetic | None:
    """How the teacher computed in the run of a checkpoint, if it was measured."""
    fields = read_record(checkpoint).get(_ARITHMETIC)
    return None if fields is None else Arithmetic(**fields)


def digest(module: nn.Module) -> str:
    """SHA-256 of the parameters and buffers of a module, with their names."""
    sha = hashlib.sha256()
    for name, value in (part for item in sorted(module.state_dict().items()) for part in _plain_parts(*item)):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def _plain_parts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor itself; of a quantised one (torchao's ...) its numbers and scales."""
    if not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    for part in value.__tensor_flatten__()[0]:
        yield from _plain_parts(f"{name}.{part}", getattr(value, part))


def checkpoint_to_resume(
    wanted: str | bool | None, folder: Path, now: dict[str, Any], ignores_data_skip: bool
) -> Path | None:
    """The checkpoint that a run resumes from; warns of what will differ from a run that never stopped.

    Args:
        wanted: A checkpoint; True or "last" for that of the highest step in the run's folder which is whole.
        folder: Folder of the run.
        now: `run_settings` of this run.
        ignores_data_skip: Whether the images of an epoch that was begun are drawn anew (`args.ignore_data_skip`).

    Returns:
        None for a new run; if the folder holds checkpoints of an earlier one, that is warned about.

    Raises:
        ValueError: If the checkpoint is damaged, or the runs differ in what must be the same.
    """
    if not wanted:
        if earlier := checkpoints_in(folder):
            logger.warning(
                f"{folder} holds checkpoints of an earlier run, up to {earlier[0].name}: resuming from the last one "
                "takes that of the highest step, whichever run it is of. Choose another output_dir, or delete them."
            )
        return None
    checkpoint = wanted_checkpoint(wanted, folder)
    check_files(checkpoint)
    changed = differences(checkpoint, now)
    if ignores_data_skip:
        changed.append("stopped within an epoch, perhaps; with ignore_data_skip its images are drawn anew")
    for sentence in changed:
        logger.warning(f"{checkpoint} was {sentence}. The run goes on, but not as it would have without the stop.")
    return checkpoint


def differences(checkpoint: Path, now: dict[str, Any]) -> list[str]:
    """How a run differs from that of a checkpoint in what may differ, each as a sentence.

    An entry that only one of the two records has was added or dropped by another version, and is not compared.

    Args:
        checkpoint: Folder of the checkpoint.
        now: `run_settings` of this run.

    Raises:
        ValueError: If they differ in what must be the same; the message lists all of it.
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
        # The record lacks arguments that a newer version added.
        if name in then and then[name] != now[name]:
            sentence = f"trained with {name} {then[name]!r}, this run has {now[name]!r}"
            if role_of(name).on_resume is OnResume.MUST_AGREE:
                refused.append(sentence)
            else:
                accepted.append(sentence)
    return refused, accepted


def _differences_of_part(name: str, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    if name not in then or then[name] == now[name]:
        return []
    before, after = then[name], now[name]
    if isinstance(before, dict) and isinstance(after, dict):
        before, after = config_values(before), config_values(after)
        changed = [key for key in before if key in after and before[key] != after[key]]
        pairs = ", ".join(f"{key} {before[key]!r} (this run: {after[key]!r})" for key in changed)
        return [f"of a run whose {name} has {pairs}"] if changed else []
    if name == "teacher":
        return [
            f"taught by a teacher whose weights have the SHA-256 {before}, those of this run's teacher have {after}"
        ]
    if name.startswith("teacher's") and None in (then.get("teacher"), now["teacher"]):
        return []  # one run has no teacher, which the comparison of "teacher" reports
    return [f"trained with {name}: {before}, this run has {after}"]


def _of_teacher(teacher: Teacher | None) -> dict[str, Any]:
    """Weights, config, features, pixels and classes of the teacher."""
    if teacher is None:
        return dict.fromkeys(("teacher", "teacher's config", "teacher's taps", "teacher's pixels", "class map"))
    classes, change = teacher.classes, teacher.renormalisation
    # A network of the student's pixels and classes is recorded by its own names, as in checkpoints of other versions.
    alike = change is None and classes is not None and classes.is_identity
    return {
        "teacher": digest(teacher.network if alike else teacher),
        # Without the names of its classes: the class map already records which class teaches which.
        "teacher's config": _config(teacher.network, without=CLASS_NAMES),
        "teacher's taps": _taps(teacher.network),
        "teacher's pixels": None if change is None else _renormalisation(change),
        "class map": None if alike or classes is None else classes.targets,
    }


def _config(network: nn.Module | FeatureReader, without: Sequence[str] = ()) -> dict[str, Any]:
    return config_values(json.loads(network.config.to_json_string(use_diff=False)), without)


def _taps(network: nn.Module | FeatureReader) -> dict[str, str] | None:
    """Feature -> module, of a network that does not name its features itself."""
    named = isinstance(network, FeatureNetwork | FeatureReader | LogitsNetwork)
    return {tap: str(path) for tap, path in network.taps.items()} if named else None


def _pixels(processor: Any) -> dict[str, Any]:
    """How an image processor changes pixels."""
    size = dict(processor.size) if processor.do_resize else None
    return {"size": size, **normalisation(processor), "reverses channels": reverses_channels(processor)}


def _renormalisation(change: Renormalisation) -> dict[str, Any]:
    """The change from the student's pixels to the teacher's."""
    constants = {name: getattr(change, name).flatten().tolist() for name in ("scale", "offset")}
    return {**constants, "reverses channels": change.reverses}


def _digest_of_names(images: datasets.Dataset) -> str:
    names = images.with_format(None)["image_id"]
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()
