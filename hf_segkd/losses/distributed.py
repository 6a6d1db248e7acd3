"""Sums and gathered tensors of all processes, for losses that need the others' data; with one process, its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def is_distributed() -> bool:
    """Whether torch.distributed is initialised."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def gather_images(maps: Tensor) -> Tensor:
    """The maps (b, c, h, w) of all processes in the order of their ranks; only the own ones get a gradient.

    Every process must bring the same number of images of the same size.
    """
    parts = [torch.empty_like(maps, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, maps.detach().contiguous())
    parts[dist.get_rank()] = maps
    return torch.cat(parts)


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (m, ...) of all processes in the order of their ranks; m may differ between processes."""
    if world_size() == 1:
        return rows
    own = torch.tensor([len(rows)], device=rows.device)
    numbers = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(numbers, own)
    longest = int(torch.cat(numbers).max())
    padded = torch.cat((rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])))
    parts = [torch.empty_like(padded) for _ in numbers]
    dist.all_gather(parts, padded)
    return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])
