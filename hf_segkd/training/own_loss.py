"""`build_own_loss`: makes a loss of the user's own in place of `method`; `with_method` records it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from hf_segkd.losses import LOSSES, AbstractDistillationLoss
from hf_segkd.losses.combined import CombinedLoss
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.types import NetworkSpec


def build_own_loss(
    own: Callable[..., AbstractDistillationLoss],
    student: NetworkSpec,
    teacher: NetworkSpec,
    args: DistillationArguments,
) -> AbstractDistillationLoss:
    """Call what was given as `loss` of `DistillationTrainer`, and check what it gives.

    Args:
        own: A subclass of `AbstractDistillationLoss`, a `functools.partial` of one, or a function; it is called with
            the two specs and `args.method_kwargs`.
        student: What the student offers.
        teacher: What the teacher offers.
        args: Arguments of the run.

    Raises:
        ValueError: If it can't be called so, gives no loss, or one without a name or with that of another, or
            `args.method` is another.
    """
    if isinstance(own, nn.Module) or not callable(own):
        raise ValueError(
            f"loss is {own!r:.100}; it takes a subclass of AbstractDistillationLoss (not an object of it, since a loss "
            "is made for two networks), a functools.partial of one, or a function of (student_spec, teacher_spec). A "
            "loss of hf_segkd is chosen by its name: method."
        )
    loss = own(student, teacher, **args.method_kwargs)
    if not isinstance(loss, AbstractDistillationLoss):
        raise ValueError(f"loss gave a {type(loss).__name__}; it must give an AbstractDistillationLoss.")
    name, kind = getattr(loss, "name", None), type(loss)
    if not isinstance(name, str) or not name or name == "none":
        raise ValueError(f"{kind.__name__} has the name {name!r}: give it the class attribute name, such as 'cosine'.")
    if kind not in (LOSSES.get(name, kind), CombinedLoss):
        raise ValueError(
            f"{kind.__name__} has the name {name!r}, which is that of hf_segkd's {LOSSES[name].__name__}, whose paper "
            "the card would cite: give it a name of its own."
        )
    if args.method not in ("none", name):
        raise ValueError(
            f"method is {args.method!r} and loss gives {name!r}: only one of them can be. Leave method, or loss, out."
        )
    return loss


def with_method(
    args: DistillationArguments, own: Callable[..., AbstractDistillationLoss], loss: AbstractDistillationLoss
) -> DistillationArguments:
    """A copy of the arguments whose `method` is the loss's name, for the report, the card and the checkpoints.

    `method_kwargs` has the keywords of a `functools.partial` too, as far as JSON can hold them.
    """
    args = copy.copy(args)
    args.method = loss.name
    keywords = own.keywords if isinstance(own, partial) else {}
    args.method_kwargs = {name: _as_json(value) for name, value in {**keywords, **args.method_kwargs}.items()}
    return args


def record_of(loss: AbstractDistillationLoss | None) -> dict[str, Any] | None:
    """What a checkpoint records of a loss that is not of hf_segkd: its class and its `extra_repr`."""
    if loss is None or type(loss).__module__.startswith("hf_segkd."):
        return None
    kind = type(loss)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "settings": loss.extra_repr()}


def _as_json(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return repr(value)
