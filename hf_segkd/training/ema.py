"""`StudentAverage`: the exponential moving average of the student's weights, which is scored, saved and published."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

# The averaged weights, beside the student in a checkpoint; only resuming and the best model read them.
AVERAGE_FILE = "ema.safetensors"


class StudentAverage:
    r"""Averages the student's parameters after each optimizer step: $a \leftarrow d_n a + (1 - d_n) w$.

    $d_n = \min(d, (1 + n) / (10 + n))$ with n the updates so far, as in TensorFlow's `ExponentialMovingAverage` and
    diffusers' `EMAModel`: a short run is not held back by its random start. Buffers are not averaged: the statistics of
    the student's batch norms are averages already.

    Args:
        student: The network that is trained.
        decay: d, above 0 and below 1; 0.999 is usual.

    Attributes:
        updates: n.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = dict(student.named_parameters())
        self._averages = {name: value.detach().clone() for name, value in self._parameters.items()}

    def restart(self) -> None:
        """Begin a new average with the student's weights."""
        self.updates = 0
        self._copy(self._parameters, self._averages)

    def update(self) -> None:
        """Take in the student's weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(list(self._averages.values()), list(self._parameters.values()), self.updates)
        self.updates += 1

    @contextlib.contextmanager
    def in_student(self) -> Iterator[None]:
        """Inside, the student has the averaged weights; afterwards its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def give_to_student(self) -> None:
        """Give the student the averaged weights permanently."""
        self._copy(self._averages, self._parameters)

    def save(self, checkpoint: Path) -> None:
        """Write the averages beside the student of a checkpoint."""
        averages = {name: value.contiguous() for name, value in self._averages.items()}
        save_file(averages, checkpoint / AVERAGE_FILE, metadata={"updates": str(self.updates)})

    def load(self, checkpoint: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ValueError: If the checkpoint holds no averages, or those of another network.
        """
        if not (checkpoint / AVERAGE_FILE).is_file():
            raise ValueError(
                f"{checkpoint} holds no {AVERAGE_FILE}, the averaged weights: it comes from a run without ema_decay. "
                "Resume with ema_decay 0, or pass the folder as the student to start anew from its weights."
            )
        with safe_open(checkpoint / AVERAGE_FILE, "pt") as file:
            if set(file.keys()) != set(self._averages):
                raise ValueError(f"{checkpoint / AVERAGE_FILE} holds the averages of another network.")
            self._copy({name: file.get_tensor(name) for name in self._averages}, self._averages)
            self.updates = int(file.metadata()["updates"])

    @staticmethod
    @torch.no_grad()
    def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
        for name, value in target.items():
            value.copy_(source[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, own in self._parameters.items():
            kept = own.clone()
            own.copy_(self._averages[name])
            self._averages[name].copy_(kept)


class AverageAfterStep(TrainerCallback):
    """Updates an average after each optimizer step that the gradient scaler of fp16 does not skip.

    Args:
        average: The average of the student that is trained.
    """

    def __init__(self, average: StudentAverage) -> None:
        self.average = average

    def on_train_begin(self, args, state, control, **kwargs):
        """A new run begins with the weights that all processes begin with, also when the trainer had another before."""
        if state.global_step == 0:
            self.average.restart()

    def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
        """Update the average, unless nothing was updated."""
        if not optimizer.step_was_skipped:
            self.average.update()
