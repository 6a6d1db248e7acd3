"""Trains the discriminator of an adversarial loss between the student's steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor
from transformers import TrainerCallback

from hf_segkd.losses.adversary import Adversary


class AdversaryCallback(TrainerCallback):
    """Lets the discriminator learn from each batch; updates it with each optimizer step of the student.

    When the gradient scaler of fp16 skips the student's step, the discriminator's is left out too.

    The mixes of the gradient penalty are drawn from a generator keyed by seed, step, batch and process, so a resumed
    run draws what the uninterrupted one does. The checkpoint of the loss holds the adversary with its optimizer.

    Args:
        adversary: The loss's.
        record: Takes the name and the value, a scalar, of what is to be logged of each batch.
    """

    def __init__(self, adversary: Adversary, record: Callable[[str, Tensor], None]) -> None:
        self.adversary = adversary
        self.record = record

    def on_train_begin(self, args, state, control, **kwargs):
        """Drop what a run of this trainer that was broken off left."""
        self.adversary.forget()

    def on_substep_end(self, args, state, control, **kwargs):
        """After each batch of an optimizer step but the last."""
        key = (args.seed, state.global_step, self.adversary.batches_learnt, args.process_index)
        self.record("discriminator_loss", self.adversary.learn(np.random.default_rng(key)))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """After the last batch."""
        self.on_substep_end(args, state, control)

    def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
        """After the student's."""
        if optimizer.step_was_skipped:
            self.adversary.forget()
            return
        try:
            self.adversary.update(state.global_step / state.max_steps)
        except FloatingPointError as error:
            raise FloatingPointError(f"Step {state.global_step + 1}: {error}") from error
