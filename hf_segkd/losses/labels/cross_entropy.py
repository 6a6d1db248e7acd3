"""Cross-entropy with class weights and label smoothing (Szegedy et al., 2016)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from hf_segkd.losses.labels.base import LabelLoss, not_zero, pixel_weights


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    r"""Mean cross-entropy in nats over the labelled pixels, as `torch.nn.functional.cross_entropy` defines it.

    With the classes' weights $w$, smoothing $\epsilon$ and $k$ classes, over the labelled pixels $i$ of class $y_i$:
    $$\frac{\sum_i \left[ (1 - \epsilon) \, w_{y_i} \ell_{i, y_i} + \frac{\epsilon}{k} \sum_c w_c \, \ell_{i, c}
    \right]}{\sum_i w_{y_i}}, \quad \ell_{i,c} = -\log p_{i,c}$$
    The divisor is the sum of the pixels' weights, so that a common factor of all weights changes nothing. Smoothing
    takes the labels for $(1 - \epsilon) \, \delta_{c, y} + \epsilon / k$ (section 7 of Szegedy et al., Rethinking the
    Inception Architecture for Computer Vision, CVPR 2016, arXiv 1512.00567; $\epsilon$ = 0.1 there).

    Args:
        logits: (b, k, hh, ww), float32 or float64.
        labels: Class of each pixel, (b, hh, ww) int64, 0..k-1 or `ignore_index`.
        ignore_index: Label of the pixels to leave out.
        class_weights: (k,), 0 or more; None weighs all classes alike.
        smoothing: From 0 to below 1.

    Returns:
        A scalar; 0 with a graph where no pixel is labelled.

    Example:
        >>> logits = torch.zeros(1, 2, 1, 2)
        >>> cross_entropy(logits, torch.tensor([[[0, 255]]]))
        tensor(0.6931)
    """
    total = F.cross_entropy(
        logits, labels, weight=class_weights, ignore_index=ignore_index, reduction="sum", label_smoothing=smoothing
    )
    return total / not_zero(pixel_weights(labels, ignore_index, class_weights).sum())


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(LabelLoss):
    """See `cross_entropy`; the arguments are `ce_weight` and `label_smoothing_factor` of `DistillationArguments`.

    Args:
        weight: Weight of the term.
        smoothing: From 0 to below 1.

    Raises:
        ValueError: If a value is out of range.
    """

    name: ClassVar[str] = "ce"
    averages_pixels: ClassVar[bool] = True
    uses_class_weights: ClassVar[bool] = True

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"Label smoothing is {self.smoothing}; it must be from 0 to below 1, such as 0.1.")

    def __call__(self, logits: Tensor, labels: Tensor, ignore_index: int, class_weights: Tensor | None) -> Tensor:
        """See the base class."""
        return cross_entropy(logits, labels, ignore_index, class_weights, self.smoothing)
