"""Numbers that any implementation can rebuild: the recipe of the golden numbers of AttnFD and of the networks."""

import numpy as np
import torch
from torch import Tensor


def hashed(shape: tuple[int, ...], k: int, scale: float) -> Tensor:
    """Float64 values in (-scale/2, scale/2) from a 32-bit integer hash of the flat index."""
    mask = np.uint64(0xFFFFFFFF)
    with np.errstate(over="ignore"):
        z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64((2 * k + 1) % 65536)
        z = z * np.uint64(2654435761) & mask
        z = (z ^ (z >> np.uint64(15))) * np.uint64(2246822519) & mask
        z = (z ^ (z >> np.uint64(13))) * np.uint64(3266489917) & mask
        z = z ^ (z >> np.uint64(16))
    return torch.from_numpy((z.astype(np.float64) / 2**32 - 0.5) * scale).reshape(shape)
