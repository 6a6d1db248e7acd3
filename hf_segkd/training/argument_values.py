"""`check_values`: refuses training arguments that are out of range or contradict each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from accelerate.utils import DynamoBackend

from hf_segkd.losses.labels import WEIGHTINGS, create_label_losses
from hf_segkd.networks.tiles import check_tile
from hf_segkd.suggestions import did_you_mean
from hf_segkd.training.refused_arguments import check_refused

# Smallest values of numbers; TrainingArguments does not check its own.
LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("recipe_batch_size", "scale_base"), 1),
    **dict.fromkeys(("learning_rate", "head_lr_multiplier", "connector_lr_multiplier", "weight_decay"), 0),
    **dict.fromkeys(
        ("distillation_weight", "ce_weight", "max_grad_norm", "seed", "data_seed", "dataloader_num_workers"), 0
    ),
    **dict.fromkeys(("preflight_images", "teacher_views", "log_pictures", "max_logged_classes"), 0),
}
# Allowed values of flags that are words.
CHOICES = {
    "teacher_dtype": ("auto", "fastest", "float32", "bfloat16", "float16"),
    "teacher_batch_norm": ("auto", "eval", "batch_stats"),
    "teacher_cache_dtype": ("float16", "bfloat16", "float32"),
    "bad_images": ("stop", "skip"),
}


def check_values(args: Any) -> None:
    """Refuse values that are out of range, contradict each other, or mean nothing here.

    Args:
        args: A `DistillationArguments`, after the `__post_init__` of `TrainingArguments`.

    Raises:
        ValueError: If there is such a value.
    """
    check_refused(args)
    _check_meaning(args)
    _check_ranges(args)
    _check_label_losses(args)


def _check_meaning(args: Any) -> None:
    if args.teacher_dtype == "fastest" and args.teacher_cache is not None:
        raise ValueError(
            "teacher_dtype is fastest, which each run measures anew, and runs that share a teacher_cache need one "
            "format: set teacher_dtype to float32, bfloat16 or float16."
        )
    for part in (args.optim_args or "").replace(" ", "").split(","):
        name, equals, _ = part.partition("=")
        if part and (not equals or (args.optim == "sgd" and name not in ("momentum", "dampening", "nesterov"))):
            raise ValueError(
                f"optim_args takes name=value, name=value, of sgd momentum, dampening and nesterov; got {part!r}. "
                "Learning rate and weight decay are flags of their own."
            )
    if args.scale_lr and (args.recipe_batch_size is None or args.auto_find_batch_size):
        raise ValueError(
            "scale_lr scales by images per optimizer step / recipe_batch_size: give recipe_batch_size, the number "
            "that learning_rate is meant for, and no auto_find_batch_size, which changes it during the run."
        )


def _check_label_losses(args: Any) -> None:
    losses = create_label_losses(
        args.label_loss, args.label_loss_kwargs, ce_weight=args.ce_weight, smoothing=args.label_smoothing_factor
    )
    if isinstance(args.class_weights, str) and args.class_weights not in WEIGHTINGS:
        raise ValueError(
            f"class_weights is {args.class_weights!r}.{did_you_mean(args.class_weights, WEIGHTINGS)} It takes a number "
            f"for each class, or one of {', '.join(WEIGHTINGS)}."
        )
    if args.class_weights is not None and not any(loss.uses_class_weights for loss in losses):
        raise ValueError(
            f"class_weights weigh the pixels of ce, ohem and focal, and label_loss is {args.label_loss!r}, a mean over "
            "classes. Leave them out, or add one of those."
        )


def _check_ranges(args: Any) -> None:
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and not (isinstance(value, Real) and least <= value < math.inf):
            got = repr(value) if isinstance(value, str) else value
            raise ValueError(f"{name} must be a number from {least}, got {got}.")
    if (args.max_steps != -1 and args.max_steps < 1) or not 0 < args.num_train_epochs < math.inf:
        raise ValueError(
            f"Nothing to train in {args.max_steps} steps or {args.num_train_epochs} epochs: give max_steps from 1, "
            "or -1 (the default) and num_train_epochs above 0."
        )
    for name, choices in CHOICES.items():
        if getattr(args, name) not in choices:
            raise ValueError(f"{name} is one of {', '.join(choices)}; got {getattr(args, name)!r}.")
    backends = [backend.value.lower() for backend in DynamoBackend]
    if args.torch_compile_backend is not None and args.torch_compile_backend.lower() not in backends:
        raise ValueError(f"torch_compile_backend is one of {', '.join(backends)}; got {args.torch_compile_backend!r}.")
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"ema_decay must be below 1, such as 0.999, or 0 for no average; got {args.ema_decay}.")
    if not 0 <= args.repeat_threshold <= 1:
        raise ValueError(f"repeat_threshold is a share of the images, from 0 (off) to 1; got {args.repeat_threshold}.")
    if not 0 < args.unlabelled_ratio < math.inf:
        raise ValueError(
            f"unlabelled_ratio must be above 0, got {args.unlabelled_ratio}; without unlabelled images leave their "
            "data set out."
        )
    if len(args.scale_range) != 2 or not 0 < args.scale_range[0] <= args.scale_range[1]:
        raise ValueError(f"scale_range takes the smallest and the largest scale, got {args.scale_range}.")
    check_tile(args.eval_tile, args.eval_overlap)
    if args.crop_size is not None and not _is_size(args.crop_size):
        raise ValueError(f"crop_size takes height and width in pixels, got {args.crop_size!r}.")
    if isinstance(args.frozen, str):
        raise ValueError(f"frozen takes a list of beginnings of parameter names, got {args.frozen!r}.")


def _is_size(value: Any) -> bool:
    """Whether it is a height and a width."""
    pair = isinstance(value, Sequence) and len(value) == 2
    return pair and all(isinstance(length, Integral) and length >= 1 for length in value)
