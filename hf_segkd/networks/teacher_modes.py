"""How a teacher looks at a batch: in which number format, and with which statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import logging

from hf_segkd.losses import AbstractDistillationLoss
from hf_segkd.types import Features

logger = logging.get_logger(__name__)


def in_own_dtype(network: nn.Module, teacher_dtype: str) -> nn.Module:
    """The network itself with its weights in a number format; if not float32, images are cast to it first.

    Args:
        network: A model of transformers, or a `FeatureNetwork`.
        teacher_dtype: `float32`, `bfloat16` or `float16`; `auto` leaves the weights as they are.
    """
    if teacher_dtype != "auto":
        network.to(getattr(torch, teacher_dtype))
    if network.dtype != torch.float32:
        network.register_forward_pre_hook(_cast_images, with_kwargs=True)
    return network


def _cast_images(network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    def cast(value: Any) -> Any:
        return value.to(network.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


def ready_to_teach(teacher: nn.Module, teacher_dtype: str, channels_last: bool, accelerator: Accelerator) -> nn.Module:
    """The teacher on its device, frozen and in evaluation mode, under the run's autocast if `teacher_dtype` is auto.

    Args:
        teacher: One that names its taps, of a network that `in_own_dtype` gave.
        teacher_dtype: As `in_own_dtype` took it.
        channels_last: Whether its weights and maps have the channels last.
        accelerator: Of the trainer.
    """
    teacher.eval().requires_grad_(False)
    if channels_last:
        teacher.to(memory_format=torch.channels_last)
    if teacher_dtype == "auto":
        return accelerator.prepare_model(teacher, evaluation_mode=True)
    return teacher.to(accelerator.device)  # accelerate would put it under the autocast of the student


def taps_for(loss: AbstractDistillationLoss, teacher: nn.Module, images: Tensor, of_batch: bool) -> Features:
    """The teacher's taps that a loss reads, without gradients.

    Args:
        loss: The distillation loss.
        teacher: As `ready_to_teach` gave it.
        images: As the student sees them, (b, 3, hh, ww).
        of_batch: Whether the teacher works inside `batch_statistics`.
    """
    with torch.no_grad(), batch_statistics(teacher) if of_batch else contextlib.nullcontext():
        features = teacher(pixel_values=images, output_features=True).features
    return {tap: features[tap] for tap in loss.teacher_taps}  # the others' memory is free from here on


@contextlib.contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, the network's batch norms normalise by the statistics of each batch, as in training.

    Their running statistics are neither read nor changed, and nothing else, such as dropout, leaves its mode.
    `SyncBatchNorm` takes the statistics of all processes.

    Args:
        network: The network, in any mode.
    """
    norms = _batch_norms(network)
    modes = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, track_running_stats) in zip(norms, modes, strict=True):
            norm.training, norm.track_running_stats = training, track_running_stats


def takes_batch_statistics(network: nn.Module, teacher_batch_norm: str, wanted: bool | None) -> bool:
    """Whether a teacher works inside `batch_statistics`: as the argument says or, where it is auto, as the method does.

    Args:
        network: The teacher.
        teacher_batch_norm: `auto`, `eval` or `batch_stats`.
        wanted: What the method wants; None of several that differ.

    Raises:
        ValueError: If `batch_stats` would do nothing, or `auto` leaves it to methods that differ.
    """
    if not _batch_norms(network):
        if teacher_batch_norm == "batch_stats":
            raise ValueError(
                "teacher_batch_norm is batch_stats, but the teacher has no batch norm: it would change nothing. Leave "
                "it at auto."
            )
        if teacher_batch_norm == "auto" and wanted is not False:
            logger.warning(
                "The method wants the teacher's batch norms to use the statistics of each batch, and the teacher has "
                "none: it works as it always does."
            )
        return False
    if teacher_batch_norm != "auto":
        return teacher_batch_norm == "batch_stats"
    if wanted is None:
        raise ValueError(
            "One of the methods wants the teacher's batch norms to use the statistics of each batch, another their "
            "running ones, and there is one teacher. Set teacher_batch_norm (--teacher_batch_norm eval or batch_stats)."
        )
    return wanted


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
