"""`as_module`: any network, or a function that calls one, as a module; `WANTED` says what a teacher must be."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from hf_segkd.networks.feature_paths import described

WANTED = (
    "A teacher is a network that is called as network(images), with normalised float images (b, 3, hh, ww), and gives "
    "logits (b, k, h, w) of k classes: as a tensor, as 'logits' or 'out' of a dict or object, or as the only such map "
    "of a tuple or dict."
)


class CallableNetwork(nn.Module):
    """A function as a module, with the modules that it refers to as its parts: their mode and weights are seen to.

    Args:
        function: Takes images and gives logits.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.title = title(function if inspect.isroutine(function) else type(function))
        self.networks = nn.ModuleList(dict.fromkeys(_modules_behind(function)))

    def forward(self, images: Tensor) -> Any:
        """What the function gives."""
        return self.function(images)

    def __deepcopy__(self, memo: dict[int, Any]) -> CallableNetwork:
        raise ValueError(
            f"The teacher is the function {self.title}, of which no copy in another number format can be made: leave "
            "teacher_dtype at auto, or pass the network as a module."
        )


def as_module(network: Any) -> nn.Module:
    """A module as it is, a function as a `CallableNetwork`.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(network, nn.Module):
        return network
    if isinstance(network, type):
        raise ValueError(f"The teacher is the class {network.__name__}, not a network of it. {WANTED}")
    if not callable(network):
        raise ValueError(f"The teacher is {described(network)}. {WANTED} Or pass its folder or Hub id.")
    return CallableNetwork(network)


def title(thing: Any) -> str:
    """The full name of a class or function."""
    return f"{thing.__module__}.{thing.__qualname__}"


def _modules_behind(function: Any) -> list[nn.Module]:
    """The modules that a function, a method, a `functools.partial` or a callable object refers to by name."""
    if isinstance(function, nn.Module):
        return [function]
    if isinstance(function, functools.partial):
        parts = [function.func, *function.args, *function.keywords.values()]
        return [module for part in parts for module in _modules_behind(part)]
    if inspect.isfunction(function):
        variables = inspect.getclosurevars(function)
        return _named(function, [*variables.nonlocals.values(), *variables.globals.values()])
    if inspect.ismethod(function):
        return [*_named(function, [function.__self__]), *_modules_behind(function.__func__)]
    call = vars(type(function)).get("__call__")
    return [*_named(call, [function]), *_modules_behind(call)] if inspect.isfunction(call) else []


def _named(function: Any, held: Iterable[Any]) -> list[nn.Module]:
    """Those of the held objects that are modules, and their attributes that the function names."""
    held = list(held)
    for owner in [owner for owner in held if not isinstance(owner, nn.Module | type) and hasattr(owner, "__dict__")]:
        held += [vars(owner)[name] for name in function.__code__.co_names if name in vars(owner)]
    return [part for part in held if isinstance(part, nn.Module)]
