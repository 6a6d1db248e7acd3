"""Lovasz-softmax: a convex stand-in for 1 - IoU (Berman et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_segkd.losses.labels.base import LabelLoss
from hf_segkd.types import Paper


def lovasz_softmax(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    r"""Mean over the classes that the labels show of the Lovasz extension of 1 - IoU (eq. 9, 11 and 12 of the paper).

    The error of a labelled pixel for class c is $m_i = 1 - p_{i,c}$ where it is of that class and $p_{i,c}$ where it is
    not. With the errors in descending order, $\Delta(S)$ the 1 - IoU of the class when the pixels S are wrong, and
    $\pi_i$ the pixels of the i highest errors:
    $$\frac{1}{|C|} \sum_{c \in C} \sum_i m_i \left( \Delta(\pi_i) - \Delta(\pi_{i-1}) \right)$$
    The pixels are those of the whole batch, as in the paper's `per_image=False`, `classes="present"`.

    Args:
        logits: (b, k, hh, ww), float32 or float64.
        labels: Class of each pixel, (b, hh, ww) int64, 0..k-1 or `ignore_index`.
        ignore_index: Label of the pixels to leave out.

    Returns:
        A scalar from 0 to 1; 0 with a graph where no pixel is labelled.

    Example:
        >>> lovasz_softmax(torch.zeros(1, 2, 1, 1), torch.tensor([[[1]]]))
        tensor(0.5000)
    """
    labelled = labels != ignore_index
    truth = labels[labelled]  # (n,)
    probabilities = logits.softmax(1).movedim(1, 0)[:, labelled]  # (k, n)
    losses = [_extension(probabilities[index], truth == index) for index in truth.unique().tolist()]
    return torch.stack(losses).mean() if losses else probabilities.sum()


def _extension(probabilities: Tensor, truth: Tensor) -> Tensor:
    """The sum for one class, from its probabilities (n,) and which pixels are of it, (n,) bool, at least one."""
    errors, order = torch.where(truth, 1 - probabilities, probabilities).sort(descending=True)
    truth = truth[order]
    found = truth.sum() - truth.cumsum(0)  # intersection, when the pixels up to this one are wrong
    union = truth.sum() + (~truth).cumsum(0)
    # A wrong pixel of the class takes 1 from the intersection, another adds 1 to the union: the differences of
    # 1 - found / union, without cancellation.
    union = union.to(errors.dtype)
    steps = torch.where(truth, 1 / union, found / (union * (union - 1)))
    return (errors * steps).sum()


@dataclass(frozen=True, kw_only=True)
class LovaszSoftmax(LabelLoss):
    """The Lovasz-Softmax Loss: A Tractable Surrogate for the Optimization of the IoU Measure; see `lovasz_softmax`.

    Args:
        weight: Weight of the term.

    Raises:
        ValueError: If the weight is negative.
    """

    name: ClassVar[str] = "lovasz"
    paper: ClassVar[Paper] = Paper(
        title="The Lovász-Softmax Loss: A Tractable Surrogate for the Optimization of the Intersection-over-Union "
        "Measure in Neural Networks",
        venue="CVPR 2018",
        arxiv="1705.08790",
        bibtex="""@inproceedings{berman2018lovasz,
  title     = {The Lov{\\'a}sz-Softmax Loss: A Tractable Surrogate for the Optimization of the Intersection-over-Union
               Measure in Neural Networks},
  author    = {Berman, Maxim and Rannen Triki, Amal and Blaschko, Matthew B.},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2018}
}""",
        code="https://github.com/bermanmaxim/LovaszSoftmax",
    )

    def __call__(self, logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
        """See the base class; it is a mean over classes, and needs no weights."""
        return lovasz_softmax(logits, labels, ignore_index)
