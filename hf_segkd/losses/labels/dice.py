"""Soft Dice loss: the overlap of each class, however few pixels it has (Milletari et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_segkd.losses.labels.base import LabelLoss
from hf_segkd.types import Paper


def dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    r"""1 - mean Dice coefficient of the classes that the labels of the batch show (section 3 of the paper).

    With $g_{i,c}$ = 1 where pixel i is of class c, over the labelled pixels of the whole batch:
    $$1 - \frac{1}{|C|} \sum_{c \in C} \frac{2 \sum_i p_{i,c} \, g_{i,c}}{\sum_i p_{i,c}^2 + \sum_i g_{i,c}^2}$$

    Args:
        logits: (b, k, hh, ww), float32 or float64.
        labels: Class of each pixel, (b, hh, ww) int64, 0..k-1 or `ignore_index`.
        ignore_index: Label of the pixels to leave out.

    Returns:
        A scalar from 0 to 1; 0 with a graph where no pixel is labelled.

    Example:
        >>> dice_loss(torch.zeros(1, 2, 1, 1), torch.tensor([[[1]]]))  # 1 - 2 * 0.5 / (0.25 + 1)
        tensor(0.2000)
    """
    labelled = (labels != ignore_index)[:, None]
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None, None]
    truth = (labels[:, None] == classes) & labelled  # (b, k, hh, ww)
    probabilities = logits.softmax(1) * labelled
    pixels = truth.sum((0, 2, 3))  # (k,)
    shown = pixels > 0
    overlaps = 2 * (probabilities * truth).sum((0, 2, 3)) / (probabilities.square().sum((0, 2, 3)) + pixels + ~shown)
    return ((1 - overlaps) * shown).sum() / shown.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Dice(LabelLoss):
    """V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation; see `dice_loss`.

    Args:
        weight: Weight of the term.

    Raises:
        ValueError: If the weight is negative.
    """

    name: ClassVar[str] = "dice"
    paper: ClassVar[Paper] = Paper(
        title="V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation",
        venue="3DV 2016",
        arxiv="1606.04797",
        bibtex="""@inproceedings{milletari2016vnet,
  title     = {{V-Net}: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation},
  author    = {Milletari, Fausto and Navab, Nassir and Ahmadi, Seyed-Ahmad},
  booktitle = {International Conference on 3D Vision},
  year      = {2016}
}""",
    )

    def __call__(self, logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
        """See the base class; it is a mean over classes, and needs no weights."""
        return dice_loss(logits, labels, ignore_index)
