r"""How far the covariance of the features spreads the logits: the quadratic forms of FAKD.

Notation: $w_c$ row c of the classifier, $\Sigma_y$ the covariance of class y. Each function gives the exact
value and first gradient in the weight, but multiplies by $\Sigma$ without autograd: the form is linear in
$W - W_0 / 2$, with $W_0$ the detached weight, once $T_y = W_0 \Sigma_y$ is known. T, (y, k, c), is all that the
backward pass keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor


def logit_variances(weight: Tensor, covariance: Tensor, detach_weight: bool = False) -> Tensor:
    r"""$D[y, c] = w_c^T \Sigma_y w_c$, the variance of logit c over the pixels of class y.

    Args:
        weight: (k, c).
        covariance: (y, c, c), or the diagonals (y, c), of any number of classes y.
        detach_weight: No gradient in the weight.

    Returns:
        (y, k), not negative.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, 0.0], [1.0, 2.0]])  # two classes, two channels
        >>> logit_variances(weight, covariance=torch.tensor([[3.0, 1.0]]))  # of one class, on the diagonal
        tensor([[3., 7.]])
    """
    weight, products = _prepare(weight, covariance, detach_weight)
    return torch.einsum("ka,yka->yk", 2.0 * weight - weight.detach(), products).clamp_min(0.0)


def logit_difference_variances(weight: Tensor, covariance: Tensor, detach_weight: bool = False) -> Tensor:
    r"""$Q_y[r, c] = (w_r - w_c)^T \Sigma_y (w_r - w_c)$, the variance of the difference of two logits.

    Arguments as `logit_variances`. Returns (y, k, k), symmetric, not negative, 0 on the diagonal.
    """
    weight, products = _prepare(weight, covariance, detach_weight)
    half = products @ (weight - 0.5 * weight.detach()).T  # (y, k, k)
    gram = half + half.mT  # W Sigma_y W^T
    variances = gram.diagonal(dim1=1, dim2=2)
    differences = (variances[:, :, None] + variances[:, None, :] - 2.0 * gram).clamp_min(0.0)
    return differences.masked_fill(torch.eye(len(weight), dtype=torch.bool, device=weight.device), 0.0)


def own_class_difference_variances(weight: Tensor, covariance: Tensor, detach_weight: bool = False) -> Tensor:
    r"""$Q[r, c] = (w_r - w_c)^T \Sigma_c (w_r - w_c)$, with the covariance of the second class.

    Arguments as `logit_variances`, with all k classes. Returns (k, k), not negative, 0 on the diagonal.
    """
    weight, products = _prepare(weight, covariance, detach_weight)
    difference = weight[:, None] - weight  # (r, c, a)
    spread = products.transpose(0, 1) - products.diagonal(dim1=0, dim2=1).T  # (r, c, a): Sigma_c (w_r - w_c)
    return ((2.0 * difference - difference.detach()) * spread).sum(-1).clamp_min(0.0)


def own_class_variances(weight: Tensor, covariance: Tensor, detach_weight: bool = False) -> Tensor:
    r"""$w_r^T \Sigma_c w_r$ as [r, c]: the transpose of `logit_variances`, with all k classes; (k, k)."""
    return logit_variances(weight, covariance, detach_weight).T


def _prepare(weight: Tensor, covariance: Tensor, detach_weight: bool) -> tuple[Tensor, Tensor]:
    """The weight, detached if asked for, and T, (y, k, c), without a graph."""
    if detach_weight:
        weight = weight.detach()
    with torch.no_grad():
        products = weight @ covariance if covariance.dim() == 3 else weight * covariance[:, None, :]
    return weight, products
