"""How a teacher looks at a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, the network's batch norms normalise by the statistics of each batch, as in training.

    Their running statistics are neither read nor changed, and nothing else, such as dropout, leaves its mode.
    `SyncBatchNorm` takes the statistics of all processes.

    Args:
        network: The network, in evaluation mode.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    modes = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm, (training, track_running_stats) in zip(norms, modes, strict=True):
            norm.training, norm.track_running_stats = training, track_running_stats
