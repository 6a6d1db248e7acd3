"""Distillation losses, one file per paper. To add one: its file, a line in `LOSSES`, its test."""

from __future__ import annotations

import inspect
from typing import Any

from hf_segkd.losses.at import ATLoss
from hf_segkd.losses.attnfd import AttnFDLoss
from hf_segkd.losses.base import AbstractDistillationLoss, require_choice
from hf_segkd.losses.cirkd import CIRKDLoss
from hf_segkd.losses.combined import CombinedLoss
from hf_segkd.losses.cwd import CWDLoss
from hf_segkd.losses.dist import DISTLoss
from hf_segkd.losses.fakd import FAKDCWDLoss, FAKDPDLoss
from hf_segkd.losses.hint import HintLoss
from hf_segkd.losses.ickd import ICKDLoss
from hf_segkd.losses.ifvd import IFVDLoss
from hf_segkd.losses.kd import KDLoss
from hf_segkd.losses.lad import LADLoss
from hf_segkd.losses.ofd import OFDLoss
from hf_segkd.losses.skds import SKDSLoss
from hf_segkd.losses.sp import SPLoss
from hf_segkd.suggestions import did_you_mean
from hf_segkd.types import NetworkSpec

LOSSES: dict[str, type[AbstractDistillationLoss]] = {
    loss.name: loss
    for loss in (
        KDLoss,
        HintLoss,
        ATLoss,
        SPLoss,
        ICKDLoss,
        OFDLoss,
        DISTLoss,
        CIRKDLoss,
        LADLoss,
        SKDSLoss,
        IFVDLoss,
        CWDLoss,
        AttnFDLoss,
        FAKDPDLoss,
        FAKDCWDLoss,
    )
}


def create_loss(name: str, student: NetworkSpec, teacher: NetworkSpec, **kwargs) -> AbstractDistillationLoss:
    """Build the loss called `name` for a student and a teacher.

    Args:
        name: A key of `LOSSES`, or several joined by commas, whose terms are then added.
        student: What the student offers.
        teacher: What the teacher offers.
        **kwargs: Arguments of the loss's constructor and, where it has presets, `preset`: docs/method_arguments.md has
            them all. Of several losses, name -> dict of its arguments.

    Raises:
        ValueError: If the name or an argument is unknown, a feature is missing, a value is out of range, or losses do
            not go together.

    Example:
        >>> import torch
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student = NetworkSpec({"decoder": 64, "logits": 19}, num_labels=19)
        >>> teacher = NetworkSpec({"decoder": 256, "logits": 19}, num_labels=19)
        >>> loss = create_loss("cwd,at", student, teacher, cwd={"preset": "mm_city", "temperature": 2.0})
        >>> loss.weights
        {'cwd': 5.0, 'at': 1.220703125}
        >>> sides = [{name: torch.ones(2, c, 8, 8) for name, c in s.channels.items()} for s in (student, teacher)]
        >>> terms = loss(*sides, torch.zeros(2, 32, 32, dtype=torch.long))
        >>> {name: tuple(term.shape) for name, term in terms.items()}
        {'cwd': (), 'at': ()}
    """
    if "," in name:
        return _combine([part.strip() for part in name.split(",")], student, teacher, kwargs)
    if name not in LOSSES:
        raise ValueError(
            f"Unknown distillation method {name!r}.{did_you_mean(name, LOSSES)} There are: {', '.join(LOSSES)}."
        )
    return LOSSES[name](student, teacher, **_arguments(LOSSES[name], kwargs))


def _arguments(loss: type[AbstractDistillationLoss], given: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments: those given, over those that a given preset sets."""
    parameters = inspect.signature(loss).parameters
    known = [name for name in dict.fromkeys((*loss.presets, *parameters)) if name not in ("student", "teacher")]
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"{loss.name} has no argument {key!r}.{did_you_mean(key, known)} It takes: {', '.join(known)}."
            )
        if key in parameters and parameters[key].annotation in (bool, "bool") and not isinstance(value, bool):
            raise ValueError(f"{loss.name}'s {key} is {value!r}; it must be true or false.")
    arguments = dict(given)
    for key, presets in loss.presets.items():
        if key in given:
            require_choice(key, given[key], tuple(presets))
            arguments = {**presets[given[key]], **arguments}
    return {key: value for key, value in arguments.items() if key in parameters}


def _combine(names: list[str], student: NetworkSpec, teacher: NetworkSpec, kwargs: dict) -> CombinedLoss:
    if len(set(names)) < len(names):
        raise ValueError(f"{','.join(names)} names a method twice; name it once, with the weight you want.")
    for key, value in kwargs.items():
        if key not in names or not isinstance(value, dict):
            raise ValueError(
                f"With several methods ({', '.join(names)}) each has its arguments under its own name, such as "
                f'{{"{names[0]}": {{"weight": 1}}}}; got {key}: {value!r}.'
            )
    losses = [create_loss(name, student, teacher, **kwargs.get(name, {})) for name in names]
    return CombinedLoss(student, teacher, losses)


__all__ = ["LOSSES", "AbstractDistillationLoss", "NetworkSpec", "create_loss"]
