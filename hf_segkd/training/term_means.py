"""`TermMeans`: the logged mean of each term of the loss; `ConstantTerms`: a warning of terms that do nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

logger = logging.get_logger(__name__)

STEPS = 50  # optimizer steps without a change of a term, before ConstantTerms warns


class TermMeans:
    """The mean of each term over the batches since the last log, without waiting for the device in between."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Drop what was counted since the last log."""
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Count a batch's terms, unweighted scalars."""
        for name, value in terms.items():
            self.add_beside(name, value)
        self._batches += 1

    def add_beside(self, name: str, value: Tensor) -> None:
        """Count a scalar of a batch that is no part of the loss, such as a discriminator's."""
        self._sums[name] = self._sums.get(name, 0) + value

    def take(self, weights: Mapping[str, float], accelerator: Accelerator) -> dict[str, float]:
        """For each term its mean over all processes, `raw_NAME`, and times its weight, `loss_NAME`; begins anew.

        A scalar that is no term has no weight, and keeps its own name.
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
        self.reset()
        return logs


class ConstantTerms(TrainerCallback):
    """Warns once of each distillation term whose logged mean stays at 0, or the same, for `STEPS` steps.

    Such a run looks healthy, but the student learns only from its labels. Causes are a term that compares a network
    with itself, features cut from the graph, or a mask that leaves nothing. It reads the log, so it costs nothing; a
    constant other than 0 takes two logs to be seen. Terms of weight 0 are meant to do nothing.
    """

    def __init__(self) -> None:
        self.last_log = 0
        self.since: dict[str, tuple[int, float]] = {}  # term -> step after which it took its value, the value
        self.warned: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        """Count from here, the step a resumed run goes on from."""
        self.last_log = state.global_step

    def on_log(self, args, state, control, logs, **kwargs):
        """Compare the means of all terms but the cross-entropy with those before."""
        if not any(key.startswith("raw_") for key in logs) or not state.is_world_process_zero:
            return
        for key, mean in logs.items():
            name = key.removeprefix("raw_")
            if name in (key, "ce") or (mean != 0 and logs[f"loss_{name}"] == 0):
                continue
            start, value = self.since.get(name, (self.last_log, math.nan))
            if not math.isclose(mean, value, rel_tol=1e-6):
                start = self.last_log
                self.since[name] = (start, mean)
                if mean != 0:  # a single mean shows nothing unless it is 0
                    continue
            if state.global_step - start >= STEPS and name not in self.warned:
                self.warned.add(name)
                logger.warning(
                    f"The term {name} is {mean:g} in all logs of steps {start + 1} to {state.global_step}: the student "
                    "learns nothing from it. Are teacher and student different networks, are its taps the ones you "
                    "mean, does the data set have the labels it reads?"
                )
        self.last_log = state.global_step
