"""CIRKD's mini-batch term: relations between the pixels of all images of the batch (Yang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from hf_segkd.losses.adapters import lengths

# exp(-2 / temperature), the least that is summed, is then still a normal number in fp32.
LOWEST_TEMPERATURE = 0.023


@torch.compiler.disable  # it would unroll the loop over tiles
def minibatch_divergence(
    student_map: Tensor, teacher_map: Tensor, temperature: float = 0.1, pooling: int = 1
) -> Tensor:
    r"""Mean of $KL(p^t \| p^s)$ over pixels and pairs of images, p being a pixel's relations to an image, in nats.

    With unit vectors $f_{i,x}$ for the n pixels x of each of b images i, the relations of a pixel to the pixels y of
    image j are $p_{ij,x} = \mathrm{softmax}_y(f_{i,x} \cdot f_{j,y} / \tau)$:
    $$\frac{1}{b^2 n} \sum_{i,j} \sum_x KL(p^t_{ij,x} \| p^s_{ij,x})$$
    over all ordered pairs of images, an image with itself included; without a factor $\tau^2$, as in the authors' code.

    It takes O(b^2 n^2 c) time, but O(b n c) memory: the maps of n x n are computed in tiles and not kept.

    Args:
        student_map: (b, c, h, w).
        teacher_map: (b, c', h, w); the channels need not be as many.
        temperature: tau, at least 0.023.
        pooling: Height and width of the cells that are averaged first, 1 for none. Time falls with its 4th power. The
            authors' `pooling=True` is 2.

    Example:
        >>> import torch
        >>> student, teacher = torch.ones(1, 1, 1, 2), torch.tensor([[1.0, -1.0]]).reshape(1, 1, 1, 2)
        >>> round(minibatch_divergence(student, teacher).item(), 4)  # all alike or all unlike: log 2
        0.6931
    """
    vectors = []
    for features in (student_map, teacher_map):
        cells = F.avg_pool2d(features, pooling, ceil_mode=True) if pooling > 1 else features
        cells = cells.flatten(2)
        vectors.append(cells / lengths(cells, dim=1, keepdim=True))
    return _PairDivergence.apply(*vectors, temperature)


class _PairDivergence(torch.autograd.Function):
    r"""`minibatch_divergence` of unit vectors (b, c, n) and (b, c', n); only the student's get a gradient.

    With S the similarities, $e = \exp((S - 1) / \tau)$ (nothing is similar by more than 1) and z the sums of e over y,
    the divergence of a pixel is $\sum_y e^t (S^t - S^s) / (\tau z^t) + \log z^s - \log z^t$, and its derivative by
    $S^s$ is $(e^s / z^s - e^t / z^t) / \tau$. What images (i, j) have in S and e is the transpose of what (j, i) have,
    so that each tile serves both pairs: by the sums of its rows the one, by the sums of its columns the other.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        images, _, pixels = student.shape
        # Of pixel x of image i over the pixels of image j, at [i, j, x].
        sums = student.new_zeros(3, images, images, pixels)
        for i, j, rows, columns, own in _tiles(student):
            student_tile = _scaled_similarities(student[i, :, rows], student[j, :, columns], temperature)
            teacher_tile = _scaled_similarities(teacher[i, :, rows], teacher[j, :, columns], temperature)
            gap = teacher_tile - student_tile
            student_tile.exp_()
            gap *= teacher_tile.exp_()
            for total, tile in zip(sums, (student_tile, teacher_tile, gap), strict=True):
                total[i, j, rows] += tile.sum(1)
                total[j, i, columns][own:] += tile[:, own:].sum(0)
        student_sum, teacher_sum, gap_sum = sums
        ctx.save_for_backward(student, teacher, student_sum, teacher_sum)
        ctx.temperature = temperature
        return (gap_sum / teacher_sum + student_sum.log() - teacher_sum.log()).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, student_sum, teacher_sum = ctx.saved_tensors
        scale = gradient / (ctx.temperature * student_sum.numel())
        student_scale, teacher_scale = scale / student_sum, scale / teacher_sum
        result = torch.zeros_like(student)
        with torch.autocast(device_type=student.device.type, enabled=False):
            for i, j, rows, columns, own in _tiles(student):
                left, right = student[i, :, rows], student[j, :, columns]
                slope = _scaled_similarities(left, right, ctx.temperature).exp_()
                slope *= student_scale[i, j, rows, None] + student_scale[j, i, columns]
                teacher_tile = _scaled_similarities(teacher[i, :, rows], teacher[j, :, columns], ctx.temperature)
                teacher_tile.exp_().mul_(teacher_scale[i, j, rows, None] + teacher_scale[j, i, columns])
                slope -= teacher_tile  # the loss by S, of both pairs
                result[i, :, rows].addmm_(right, slope.T)
                result[j, :, columns][:, own:].addmm_(left, slope[:, own:])
        return result, None, None


def _tiles(vectors: Tensor) -> Iterator[tuple[int, int, slice, slice, int]]:
    """Rows of image i and columns of image j that hold each pair of pixels once.

    Yields:
        i, j, rows, columns, and the number of first columns that are the rows' own pixels: there the tile is square
        and has both of (x, y) and (y, x).
    """
    images, _, pixels = vectors.shape
    elements = 2**19 if vectors.device.type == "cpu" else 2**22  # in the cache; enough for a GPU
    height = max(1, elements // pixels)
    for i in range(images):
        for j in range(i, images):
            for start in range(0, pixels, height):
                stop = min(start + height, pixels)
                if i == j:
                    yield i, j, slice(start, stop), slice(start, pixels), stop - start
                else:
                    yield i, j, slice(start, stop), slice(0, pixels), 0


def _scaled_similarities(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """(S - 1) / tau of unit vectors (c, m) and (c, n): (m, n)."""
    return torch.addmm(left.new_full((), -1.0 / temperature), left.T, right, alpha=1.0 / temperature)
