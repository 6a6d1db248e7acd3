"""`count_macs`, `milliseconds_per_image`, `measure_latencies`, `peak_memory`: the cost of a network, of a process."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hf_segkd.networks.outputs import image_channels


def count_macs(model: PreTrainedModel, image_size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions and matrix products for one image of (height, width) pixels."""
    image = _image(model, image_size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(pixel_values=image)
    return counter.get_total_flops() // 2  # the counter takes a multiply-add for two operations


WARM_UP, RUNS_OF_A_TURN = 5, 10


@dataclass(frozen=True)
class Latency:
    """Median and 95th percentile of the time of a call, in milliseconds."""

    median_ms: float
    p95_ms: float


def milliseconds_per_image(model: PreTrainedModel, image_size: tuple[int, int], runs: int = 15) -> float:
    """Median time of a forward pass with one image, logits at the image's resolution, on the model's device.

    Args:
        model: The network.
        image_size: (height, width) in pixels.
        runs: How many passes to time.
    """
    image = _image(model, image_size)
    model.eval()

    def forward() -> None:
        model(pixel_values=image)
        if image.is_cuda:
            torch.cuda.synchronize()

    (latency,) = measure_latencies([forward], runs)
    return latency.median_ms


def measure_latencies(calls: Sequence[Callable[[], object]], runs: int) -> list[Latency]:
    """Time of each call over at least so many runs, in turns, so that a noisy machine favours none of them.

    A turn begins with untimed calls: they bring the call's data back into the caches, and outlast the threads of the
    previous runtime, which wait for work on a core of their own for a while.
    """
    times: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode():
        for _ in range(-(-runs // RUNS_OF_A_TURN)):
            for call, own in zip(calls, times, strict=True):
                for _ in range(WARM_UP):
                    call()
                for _ in range(RUNS_OF_A_TURN):
                    start = time.perf_counter()
                    call()
                    own.append(1000 * (time.perf_counter() - start))
    return [Latency(float(np.median(own)), float(np.percentile(own, 95))) for own in times]


def peak_memory() -> int | None:
    """Most bytes that this process had at once: on its GPU, or else in memory; None on Windows without a GPU."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def cpu_name() -> str:
    """Name of the processor as its maker gives it, or the architecture where the system does not report it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _image(model: PreTrainedModel, image_size: tuple[int, int]) -> torch.Tensor:
    return torch.zeros(1, image_channels(model.config), *image_size, device=model.device, dtype=model.dtype)
