"""Focal loss: pixels that are right already count little (Lin et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_segkd.losses.base import require_weight
from hf_segkd.losses.labels.base import LabelLoss, not_zero, pixel_weights
from hf_segkd.types import Paper


def focal_loss(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    r"""Mean focal loss over the labelled pixels (eq. 5 of the paper, with the softmax for the sigmoid).

    $$\frac{\sum_i \alpha_{y_i} (1 - p_{i, y_i})^\gamma \, (-\log p_{i, y_i})}{\sum_i \alpha_{y_i}}$$
    With $\gamma$ = 0 it is the cross-entropy. The paper divides by the number of boxes with an object instead.

    Args:
        logits: (b, k, hh, ww), float32 or float64.
        labels: Class of each pixel, (b, hh, ww) int64, 0..k-1 or `ignore_index`.
        ignore_index: Label of the pixels to leave out.
        gamma: Focusing parameter, 0 or more; 2 in the paper.
        class_weights: The paper's alpha of each class, (k,), 0 or more; None weighs all alike.

    Returns:
        A scalar; 0 with a graph where no pixel is labelled.

    Example:
        >>> focal_loss(torch.zeros(1, 2, 1, 1), torch.tensor([[[1]]]))  # 0.25 * log 2
        tensor(0.1733)
    """
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    # 1 - p without cancellation; above 0, where a power below 1 has no derivative.
    wrong = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
    weights = pixel_weights(labels, ignore_index, class_weights)
    return (weights * wrong**gamma * losses).sum() / not_zero(weights.sum())


@dataclass(frozen=True, kw_only=True)
class Focal(LabelLoss):
    """Focal Loss for Dense Object Detection; see `focal_loss`.

    Args:
        weight: Weight of the term.
        gamma: Focusing parameter, 0 or more; 2 as in the paper.

    Raises:
        ValueError: If a value is out of range.
    """

    name: ClassVar[str] = "focal"
    averages_pixels: ClassVar[bool] = True
    uses_class_weights: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        title="Focal Loss for Dense Object Detection",
        venue="ICCV 2017",
        arxiv="1708.02002",
        bibtex="""@inproceedings{lin2017focal,
  title     = {Focal Loss for Dense Object Detection},
  author    = {Lin, Tsung-Yi and Goyal, Priya and Girshick, Ross and He, Kaiming and Doll{\\'a}r, Piotr},
  booktitle = {IEEE International Conference on Computer Vision},
  year      = {2017}
}""",
    )

    gamma: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weight("The focal loss's gamma", self.gamma)

    def __call__(self, logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
        """See the base class."""
        return focal_loss(logits, labels, ignore_index, self.gamma, class_weights)
