"""Size and cost of a network: parameters, multiply-adds, time per image."""

from __future__ import annotations

import statistics
import time

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel


def count_macs(model: PreTrainedModel, image_size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions and matrix products for one image of (height, width) pixels."""
    image = _image(model, image_size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.eval()(pixel_values=image)
    return counter.get_total_flops() // 2  # the counter takes a multiply-add for two operations


def milliseconds_per_image(model: PreTrainedModel, image_size: tuple[int, int], runs: int = 15) -> float:
    """Median time of a forward pass with one image, logits at the image's resolution, on the model's device."""
    image = _image(model, image_size)
    model.eval()
    times = []
    with torch.inference_mode():
        for _ in range(runs + 3):
            start = time.perf_counter()
            model(pixel_values=image)
            if image.is_cuda:
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])  # the first three warm up caches and kernels


def _image(model: PreTrainedModel, image_size: tuple[int, int]) -> torch.Tensor:
    parameter = next(model.parameters())
    return torch.zeros(1, 3, *image_size, device=parameter.device, dtype=parameter.dtype)
