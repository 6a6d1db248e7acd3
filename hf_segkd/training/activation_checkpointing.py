"""`checkpointed_blocks`: gradient checkpointing of any network, which leaves batch norms and dropout as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

_CONTAINERS = (nn.ModuleList, nn.Sequential)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The parts that lists and sequences of a network hold and that have parts of their own: its residual blocks ...

    Of blocks within blocks the outermost.
    """
    found = []
    for child in network.children():
        parts = _parts(child) if isinstance(child, _CONTAINERS) else []
        found += parts or blocks_of(child)
    return found


def _parts(container: nn.Module) -> list[nn.Module]:
    parts = []
    for child in container.children():
        if isinstance(child, _CONTAINERS):
            parts += _parts(child)
        elif any(child.children()) and any(True for _ in child.parameters()):
            parts.append(child)
    return parts


def check_options(options: dict[str, Any] | None, network: nn.Module) -> None:
    """Refuse options of gradient checkpointing that are not followed, and networks without blocks.

    Args:
        options: What `gradient_checkpointing_kwargs` holds.
        network: The student.

    Raises:
        ValueError: If there is another option than `use_reentrant` False, or the network has no blocks.
    """
    others = {name: value for name, value in (options or {}).items() if (name, value) != ("use_reentrant", False)}
    if others:
        raise ValueError(
            f"gradient_checkpointing_kwargs holds {others}; all blocks are checkpointed without reentry, and only "
            "use_reentrant=False can be given. Leave it out."
        )
    if not blocks_of(network):
        raise ValueError(
            f"gradient_checkpointing drops what is inside the blocks of a network, and {type(network).__name__} has "
            "no ModuleList or Sequential that holds any. Leave it out; a smaller per_device_train_batch_size with "
            "more gradient_accumulation_steps takes less memory too."
        )


@contextlib.contextmanager
def checkpointed_blocks(network: nn.Module) -> Iterator[None]:
    """Inside, a forward keeps only what goes into each block, and the backward computes the rest again.

    Gradients are the same, and the second time no statistics of batch norms are updated; dropout draws the same.

    Args:
        network: The network, in training mode.
    """
    own = {block: vars(block).get("forward") for block in blocks_of(network)}  # one that somebody put there
    try:
        for block in own:
            contexts = partial(_first_and_second, block)
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
        yield
    finally:
        for block, forward in own.items():
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward


def _first_and_second(block: nn.Module) -> tuple[contextlib.AbstractContextManager, ...]:
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Inside, batch norms work as in training, and their running statistics stay."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone() for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            if count is not None:
                norm.num_batches_tracked.copy_(count)
