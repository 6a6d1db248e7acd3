"""`LabelLosses`: combines the losses on the labels of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hf_segkd.losses.base import at_least_float32
from hf_segkd.losses.labels.base import LabelLoss, pixel_weights


class LabelLosses(nn.Module):
    """What a network takes as its `loss_function`: the unweighted values of several losses, in their order.

    They are computed in float32 (or float64) without autocast.

    Args:
        losses: At least one, of different names.
        class_weights: (k,) float32, a buffer that is not saved; None weighs all classes alike.

    Attributes:
        losses: As given.
        weights: Weight of each term, by its name.
    """

    def __init__(self, losses: Sequence[LabelLoss], class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.losses = tuple(losses)
        self.weights = {loss.name: loss.weight for loss in losses}
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        """The terms, (number of losses,).

        Args:
            logits: (b, k, hh, ww).
            labels: Class of each pixel, (b, hh, ww), 0..k-1 or `ignore_index`.
            ignore_index: Label of the pixels to leave out.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            logits, labels = at_least_float32(logits), labels.long()
            weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
            return torch.stack([loss(logits, labels, ignore_index, weights) for loss in self.losses])

    def pixel_weight(self, labels: Tensor, ignore_index: int) -> Tensor:
        """The sum of the weights of the labelled pixels, which means over pixels are divided by; their number without.

        Args:
            labels: (b, hh, ww) on any device.
            ignore_index: Label of the pixels that count nothing.
        """
        weights = None if self.class_weights is None else self.class_weights.to(labels.device)
        return pixel_weights(labels, ignore_index, weights).sum()
