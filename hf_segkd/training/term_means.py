"""What is logged of each term of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback


class TermMeans(TrainerCallback):
    """The mean of each term over the batches since the last log, without waiting for the device in between."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop what a run of this trainer before this one left behind its last log."""
        self._begin()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Count a batch's terms, unweighted scalars."""
        for name, value in terms.items():
            self.add_beside(name, value)
        self._batches += 1

    def add_beside(self, name: str, value: Tensor) -> None:
        """Count what a batch has beside its terms, a scalar that is no part of the loss, such as a discriminator's."""
        self._sums[name] = self._sums.get(name, 0) + value

    def take(self, weights: Mapping[str, float], accelerator: Accelerator) -> dict[str, float]:
        """For each term its mean over all processes, `raw_NAME`, and times its weight, `loss_NAME`; begins anew.

        What came beside the terms has no weight, and its own name.
        """
        if not self._batches:
            return {}
        sums = torch.stack([value.float() for value in self._sums.values()])
        means = (accelerator.reduce(sums, reduction="mean") / self._batches).tolist()
        logs = {}
        for name, mean in zip(self._sums, means, strict=True):
            if name in weights:
                logs |= {f"loss_{name}": weights[name] * mean, f"raw_{name}": mean}
            else:
                logs[name] = mean
        self._begin()
        return logs
