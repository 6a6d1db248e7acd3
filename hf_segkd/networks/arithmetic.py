"""`fastest`: number format and layout in which a frozen network runs fastest on its device, found by measuring."""

from __future__ import annotations

import copy
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_segkd.networks.folding import fold_batch_norms

logger = logging.get_logger(__name__)

_RUNS = 3
_MUCH_SLOWER = 3.0
# A format that rounds more must save a twentieth of the time: less is within what a measurement varies by.
_GAIN = 0.95


class Arithmetic(NamedTuple):
    """How a frozen network computes.

    Args:
        dtype: Number format of weights and maps, a name in torch.
        folded: Whether batch norms are part of the convolutions before them.
        channels_last: Whether weights and maps have the channels last.
    """

    dtype: str
    folded: bool
    channels_last: bool

    def __str__(self) -> str:
        parts = ["batch norms folded"] * self.folded + ["channels last"] * self.channels_last
        return ", ".join([self.dtype, *parts])


def network_in(arithmetic: Arithmetic, network: nn.Module, images: Tensor) -> nn.Module:
    """A copy of the network that computes so.

    Args:
        arithmetic: How.
        network: The network, which stays as it is.
        images: Some images that it takes, (b, c, h, w).
    """
    copied = copy.deepcopy(network).float()
    if arithmetic.folded:
        fold_batch_norms(copied, images[:1].float())
    copied.to(getattr(torch, arithmetic.dtype))
    return copied.to(memory_format=torch.channels_last) if arithmetic.channels_last else copied


def fastest(network: nn.Module, images: Tensor, folds: bool, channels_last: bool) -> Arithmetic:
    """Measure a few forwards in each format that the device may compute natively, and log the times.

    float32 and bfloat16, on GPUs float16 too, with the channels last and not. A way that fails, or gives a feature that
    is not finite, is left out. Of two that are about as fast it is the one that rounds less.

    Args:
        network: The network, in evaluation mode on its device, which stays as it is.
        images: A batch of training, (b, c, h, w); on a CPU its first two images are used.
        folds: Whether batch norms may be folded: not where they take the statistics of each batch.
        channels_last: Whether the network already has the channels last, which then stays.

    Returns:
        The fastest; as the network is where nothing is faster.
    """
    images = images[:2] if images.device.type == "cpu" else images
    best = given = Arithmetic(str(network.dtype).removeprefix("torch."), False, channels_last)
    times = {given: _seconds(network, images, math.inf)}
    for dtype in _formats(images.device):
        for last in (True,) if channels_last else (False, True):
            way = Arithmetic(dtype, folds, last)
            if way == given:
                continue
            try:
                times[way] = _seconds(network_in(way, network, images), images, times[best])
            except RuntimeError:  # the device lacks an operation in this format, or memory
                continue
            if times[way] < _GAIN * times[best]:
                best = way
    measured = "; ".join(f"{way}: {1000 * seconds:.3g} ms" for way, seconds in times.items() if seconds < math.inf)
    size = "{} images of {} x {}".format(len(images), *images.shape[-2:])
    chosen = f"{best} (as it was loaded)" if best == given else str(best)
    logger.warning(f"The teacher computes in {chosen}. Its forward for {size} takes, by number format, {measured}.")
    return best


def _formats(device: torch.device) -> list[str]:
    """Those worth a measurement on this device, beginning with that which rounds least."""
    if device.type != "cuda":
        return ["float32", "bfloat16"]
    return ["float32", "float16", *(["bfloat16"] if torch.cuda.is_bf16_supported(including_emulation=False) else [])]


@torch.no_grad()
def _seconds(network: nn.Module, images: Tensor, fastest_yet: float) -> float:
    """Shortest of a few forwards after a first that warms up; infinity if the features are not finite."""
    images = images.to(network.dtype)
    best = math.inf
    for run in range(_RUNS + 1):
        _wait(images.device)
        start = time.perf_counter()
        output = network(pixel_values=images, output_features=True)
        _wait(images.device)
        seconds = time.perf_counter() - start
        if not run and not all(map(_is_finite, output.features.values())):
            return math.inf
        if run:
            best = min(best, seconds)
            if seconds > _MUCH_SLOWER * fastest_yet:  # more of it would tell nothing
                break
    return best


def _is_finite(feature: Tensor) -> bool:
    return bool(feature.isfinite().all())


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
