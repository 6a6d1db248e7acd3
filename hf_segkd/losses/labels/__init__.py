"""Losses on the labels, one file each: `LABEL_LOSSES`, `create_label_losses`, and `class_weights` from counts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hf_segkd.losses.labels.base import LabelLoss
from hf_segkd.losses.labels.class_weights import WEIGHTINGS, check_class_weights, class_weights
from hf_segkd.losses.labels.cross_entropy import CrossEntropy
from hf_segkd.losses.labels.dice import Dice
from hf_segkd.losses.labels.focal import Focal
from hf_segkd.losses.labels.lovasz import LovaszSoftmax
from hf_segkd.losses.labels.ohem import OHEM
from hf_segkd.losses.labels.together import LabelLosses
from hf_segkd.suggestions import did_you_mean

LABEL_LOSSES: dict[str, type[LabelLoss]] = {
    loss.name: loss for loss in (CrossEntropy, OHEM, Focal, Dice, LovaszSoftmax)
}


def create_label_losses(
    names: str, kwargs: dict[str, Any], *, ce_weight: float = 1.0, smoothing: float = 0.0
) -> list[LabelLoss]:
    """The losses on the labels that arguments ask for.

    Args:
        names: A key of `LABEL_LOSSES`, or several joined by commas, whose terms are then added.
        kwargs: Arguments of the loss; of several losses, name -> dict of them.
        ce_weight: Weight of the term `ce`.
        smoothing: Label smoothing of the term `ce`.

    Raises:
        ValueError: If a name or an argument is unknown or a value out of range, a name comes twice, or weight or
            smoothing of `ce` are given without it.
    """
    listed = [name.strip() for name in names.split(",")]
    for name in listed:
        if name not in LABEL_LOSSES:
            raise ValueError(
                f"Unknown loss on the labels {name!r}.{did_you_mean(name, LABEL_LOSSES)} There are: "
                f"{', '.join(LABEL_LOSSES)}."
            )
    if len(set(listed)) < len(listed):
        raise ValueError(f"label_loss {names!r} names a loss twice; name it once, with the weight you want.")
    if "ce" not in listed and (ce_weight != 1 or smoothing):
        raise ValueError(
            f"ce_weight and label_smoothing_factor are of the cross-entropy, and label_loss is {names!r}. Add ce to "
            "it, or leave them out; the weights of other losses are in label_loss_kwargs."
        )
    given = {listed[0]: kwargs} if len(listed) == 1 else kwargs
    for name, options in given.items():
        if name not in listed or not isinstance(options, dict):
            raise ValueError(
                f"With several losses on the labels ({names}) each has its arguments under its own name, such as "
                f'{{"{listed[-1]}": {{"weight": 1}}}}; got {name}: {options!r}.'
            )
    return [_create(name, given.get(name, {}), ce_weight, smoothing) for name in listed]


def _create(name: str, kwargs: dict[str, Any], ce_weight: float, smoothing: float) -> LabelLoss:
    if name == "ce":
        if kwargs:
            raise ValueError(
                f"The arguments of ce are ce_weight, label_smoothing_factor and class_weights; got {kwargs} in "
                "label_loss_kwargs."
            )
        return CrossEntropy(weight=ce_weight, smoothing=smoothing)
    known = [field.name for field in fields(LABEL_LOSSES[name])]
    for key in kwargs:
        if key not in known:
            raise ValueError(f"{name} has no argument {key!r}.{did_you_mean(key, known)} It takes: {', '.join(known)}.")
    return LABEL_LOSSES[name](**kwargs)


__all__ = [
    "LABEL_LOSSES",
    "WEIGHTINGS",
    "LabelLoss",
    "LabelLosses",
    "check_class_weights",
    "class_weights",
    "create_label_losses",
]
