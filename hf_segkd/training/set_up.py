"""`make_teacher`, `prepared_distiller`: the networks of a run, as they are trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_segkd.losses import AbstractDistillationLoss
from hf_segkd.networks import FeatureNetwork, with_taps, without_taps
from hf_segkd.networks.class_map import ClassMap
from hf_segkd.networks.teacher import Teacher
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.distiller import Distiller, build_distiller
from hf_segkd.training.processes import synchronise_batch_norms


def refuse_unusual_weights(student: Any) -> None:
    """Refuse a student of which not all weights are trained and saved as `from_pretrained` loads them.

    Args:
        student: As the user gives it: a network, or something that has none yet.

    Raises:
        ValueError: If it has adapters of PEFT, or weights that are quantised.
    """
    if not isinstance(student, nn.Module):
        return
    if any(type(module).__module__.startswith("peft.") for module in student.modules()):
        raise ValueError(
            "The student has adapters of PEFT (LoRA ...), and checkpoints here hold a plain student, without them or "
            "their base. Give the network itself: student.merge_and_unload() of a PeftModel, or the model before "
            "add_adapter. To train only a part of it, name the rest in frozen. A teacher may have adapters."
        )
    for name, value in student.named_parameters():
        if type(value.data) is not Tensor or not value.is_floating_point():
            raise ValueError(
                f"The student's weights are quantised ({name} is a {type(value.data).__name__} of {value.dtype}), and "
                "it is trained in float32. Load it without quantization_config, and quantise what training gives. A "
                "teacher may be quantised."
            )


def make_teacher(
    network: nn.Module | Callable[[Tensor], Any] | None,
    processor: Any,
    class_map: ClassMap | str | None,
    args: DistillationArguments,
    student: PreTrainedModel | FeatureNetwork,
    student_processor: Any,
) -> Teacher | None:
    """The teacher of a student; None where there is no network to learn from.

    Raises:
        ValueError: If it is the student itself, something is said of a teacher that is not there, or as `Teacher`.
    """
    if network is None:
        if processor is not None or class_map is not None:
            raise ValueError("teacher_processor and class_map say how a teacher is read, and there is no teacher.")
        return None
    network = with_taps(network)
    if any(module is without_taps(student) for module in network.modules()):
        raise ValueError("Teacher and student are the same object, and the teacher must not be trained: load it twice.")
    return Teacher(
        network,
        processor,
        class_map,
        args.teacher_dtype,
        args.teacher_batch_norm,
        student=student,
        student_processor=student_processor,
    )


def prepared_distiller(
    student: PreTrainedModel | FeatureNetwork,
    teacher: Teacher | None,
    args: DistillationArguments,
    loss: Callable[..., AbstractDistillationLoss] | None,
    trains: bool,
) -> Distiller:
    """The student and the losses in the set-up that `args` asks for; see `build_distiller`.

    Args:
        student: The network to train, with its features.
        teacher: The network to learn from.
        args: Arguments of the run.
        loss: Makes the loss in place of `args.method`.
        trains: Whether there are training images.
    """
    distiller = build_distiller(student, teacher, args, loss)
    if args.sync_batch_norm:
        synchronise_batch_norms(distiller, args)
    if trains and distiller.reader is not None:
        distiller.reader.freeze_unused_parameters(() if distiller.loss is None else distiller.loss.student_taps)
    if args.channels_last:
        student.to(memory_format=torch.channels_last)
    return distiller
