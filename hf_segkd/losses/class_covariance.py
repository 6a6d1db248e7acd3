"""FAKD's statistics: covariances of features by class, and the variances of logits that follow from them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hf_segkd.losses.distributed import all_reduce_sum


def merge_moments(
    count: Tensor,
    mean: Tensor,
    covariance: Tensor,
    batch_count: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Population statistics of old and new pixels together, exact and stable.

    The new pixels come as sums of deviations $d = x - \mu$ from the old mean, so one reduction over the processes is
    enough: $\mu' = \mu + S_1 / n'$ and $\Sigma' = (n \Sigma + S_2 - S_1 S_1^T / n') / n'$ with $n' = n + m$.

    Args:
        count: n, (y,), pixels seen of each of y classes.
        mean: mu, (y, c). For a class not seen yet: any point near its pixels, at best their mean.
        covariance: Sigma, (y, c, c), or its diagonal (y, c).
        batch_count: m, (y,), new pixels; n + m is at least 1.
        first_moment: S_1, (y, c), sum of d.
        second_moment: S_2, sum of d d^T, or of its diagonal, shaped like `covariance`.

    Returns:
        The new count, mean and covariance.
    """
    total = count + batch_count
    per_class = total.to(mean.dtype)[:, None]
    shift = first_moment / per_class
    mean = mean + shift
    if covariance.dim() == 2:
        scatter = covariance * count.to(mean.dtype)[:, None] + second_moment - first_moment * shift
        return total, mean, scatter / per_class
    outer = first_moment[:, :, None] * shift[:, None, :]
    scatter = covariance * count.to(mean.dtype)[:, None, None] + second_moment - outer
    return total, mean, scatter / per_class[:, :, None]


class ClassCovariance(nn.Module):
    """Running mean and population covariance per class, the same on all processes.

    Everything since the first update counts alike (weight 1 / n, no forgetting), as in ISDA. A class not yet
    seen, or seen in one pixel, has covariance 0. The state is saved with the module. All processes hold the
    same state, so DDP may leave it out of its broadcast of buffers.

    Args:
        num_classes: k.
        channels: c.
        kind: `full` matrices, (k, c, c), or their `diagonal`, (k, c).

    Attributes:
        count: (k,) int64; float32 would stop counting at 2^24 pixels.
        mean: (k, c).
        covariance: (k, c, c) or (k, c).
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        kind: Literal["full", "diagonal"] = "full",
    ) -> None:
        super().__init__()
        shape = (num_classes, channels, channels) if kind == "full" else (num_classes, channels)
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(num_classes, channels))
        self.register_buffer("covariance", torch.zeros(shape))

    @torch.compiler.disable
    @torch.no_grad()
    def update(self, rows: Tensor, labels: Tensor) -> None:
        """Take in a batch of pixels. Every process must call it, with pixels or without.

        One transfer to the host (which classes are present) and three or four all-reduces: the pixels per
        class, the sums where some class is new to everybody, and the two moments.

        Args:
            rows: (m, c) features; gradients are not tracked. A pixel with a value that is not finite is left out: one
                overflow of a step that fp16 training skips anyway would spoil the statistics forever.
            labels: (m,) int64, 0 to k-1; pixels of any other label, such as the ignore index, are left out.
        """
        rows = rows.detach().to(self.mean.dtype)
        labels = labels.masked_fill(~rows.isfinite().all(dim=1), -1)
        order, local_count = sort_by_class(labels, len(self.count))
        batch_count = all_reduce_sum(local_count.clone())
        local, batch, seen = torch.stack((local_count, batch_count, self.count)).tolist()
        present = [y for y, pixels in enumerate(batch) if pixels]
        if not present:
            return
        segments = rows.index_select(0, order[: sum(local)]).split(local)
        segments = [segments[y] for y in present]
        classes = torch.tensor(present, device=rows.device)
        batch_count, count, centre = batch_count[classes], self.count[classes], self.mean[classes]
        if not all(seen[y] for y in present):
            # Shifting a class's first pixels by their own mean keeps fp32 exact where the mean is large.
            sums = all_reduce_sum(torch.stack([segment.sum(0) for segment in segments]))
            centre = torch.where(count[:, None] == 0, sums / batch_count[:, None], centre)
        first_moment, second_moment = self._moments(segments, centre)
        merged = merge_moments(count, centre, self.covariance[classes], batch_count, first_moment, second_moment)
        for buffer, value in zip((self.count, self.mean, self.covariance), merged, strict=True):
            buffer.index_copy_(0, classes, value)

    def _moments(self, segments: list[Tensor], centre: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the pixels of all processes of d and d d^T (or its diagonal) of each segment's class."""
        first, second = [], []
        for segment, point in zip(segments, centre, strict=True):
            deviation = segment - point
            first.append(deviation.sum(0))
            full = self.covariance.dim() == 3
            second.append(deviation.T @ deviation if full else deviation.square().sum(0))
        return all_reduce_sum(torch.stack(first)), all_reduce_sum(torch.stack(second))


def sort_by_class(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Group pixels by class without a transfer to the host.

    Args:
        labels: (m,) int64; labels outside 0 to k-1 are left out.
        num_classes: k.

    Returns:
        Pixel indices ordered by class, (m,), with those left out at the end; and the number of pixels of each
        class, (k,) int64.
    """
    inside = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    inside, order = torch.sort(inside, stable=True)
    # Not bincount, which waits for the device to learn the largest label.
    bounds = torch.searchsorted(inside, torch.arange(num_classes + 1, device=labels.device))
    return order, bounds.diff()


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
