"""CIRKD's mini-batch term: relations between the pixels of all images of the batch (Yang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from hf_segkd.losses.adapters import lengths

# exp(-2 / temperature), the least that is summed, is then still a normal number in fp32.
LOWEST_TEMPERATURE = 0.023
# The most that the tiles of a pair of images may take, over what the vectors take.
KEPT = 4


@torch.compiler.disable  # it would unroll the loop over tiles
def minibatch_divergence(
    student_map: Tensor, teacher_map: Tensor, temperature: float = 0.1, pooling: int = 1
) -> Tensor:
    r"""Mean of $KL(p^t \| p^s)$ over pixels and pairs of images, p being a pixel's relations to an image, in nats.

    With unit vectors $f_{i,x}$ for the n pixels x of each of b images i, the relations of a pixel to the pixels y of
    image j are $p_{ij,x} = \mathrm{softmax}_y(f_{i,x} \cdot f_{j,y} / \tau)$:
    $$\frac{1}{b^2 n} \sum_{i,j} \sum_x KL(p^t_{ij,x} \| p^s_{ij,x})$$
    over all ordered pairs of images, an image with itself included; without a factor $\tau^2$, as in the authors' code.

    It takes O(b^2 n^2 c) time, but O(b n c) memory: the maps of n x n are computed in tiles, of which few are kept.

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

    The gradient is made on the way, when the sums of a pair of images are known. The tiles are then still there, up to
    `KEPT` bytes; those that are not are computed again.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        images, _, pixels = student.shape
        result = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        scale = 1.0 / (temperature * images**2 * pixels)
        most = 0 if result is None else KEPT * (student.nbytes + teacher.nbytes)
        total = student.new_zeros(())
        for i, j in combinations_with_replacement(range(images), 2):
            # Of each pixel of image i over those of j, and the other way round.
            sums = student.new_zeros(3, 1 if i == j else 2, pixels)
            kept: dict[int, tuple[Tensor, Tensor]] = {}
            for rows, columns, own in _tiles(student, same=i == j):
                student_tile, teacher_tile = (
                    _scaled_similarities(x[i, :, rows], x[j, :, columns], temperature) for x in (student, teacher)
                )
                gap = teacher_tile - student_tile
                student_tile.exp_()
                gap *= teacher_tile.exp_()
                for sum_, tile in zip(sums, (student_tile, teacher_tile, gap), strict=True):
                    sum_[0, rows] += tile.sum(1)
                    sum_[-1, columns][own:] += tile[:, own:].sum(0)
                if (len(kept) + 1) * 2 * gap.nbytes <= most:
                    kept[rows.start] = student_tile, teacher_tile
            del student_tile, teacher_tile, gap, tile
            student_sum, teacher_sum, gap_sum = sums
            total += (gap_sum / teacher_sum + student_sum.log() - teacher_sum.log()).sum()
            if result is None:
                continue
            student_scale, teacher_scale = scale / student_sum, scale / teacher_sum
            for rows, columns, own in _tiles(student, same=i == j):
                slope, teacher_tile = kept.pop(rows.start, None) or (
                    _scaled_similarities(x[i, :, rows], x[j, :, columns], temperature).exp_()
                    for x in (student, teacher)
                )
                slope *= student_scale[0, rows, None] + student_scale[-1, columns]
                teacher_tile *= teacher_scale[0, rows, None] + teacher_scale[-1, columns]
                slope -= teacher_tile  # the loss by S, of both pairs
                result[i, :, rows].addmm_(student[j, :, columns], slope.T)
                result[j, :, columns][:, own:].addmm_(student[i, :, rows], slope[:, own:])
        if result is not None:
            ctx.save_for_backward(result)
        return total / (images**2 * pixels)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        return result * gradient, None, None


def _tiles(vectors: Tensor, same: bool) -> Iterator[tuple[slice, slice, int]]:
    """Rows of one image and columns of another, or of the `same`, that hold each pair of pixels once.

    Yields:
        rows, columns, and the number of first columns that are the rows' own pixels: there the tile is square and has
        both of (x, y) and (y, x).
    """
    pixels = vectors.shape[2]
    elements = 2**19 if vectors.device.type == "cpu" else 2**22  # in the cache; enough for a GPU
    height = max(1, elements // pixels)
    for start in range(0, pixels, height):
        stop = min(start + height, pixels)
        yield slice(start, stop), slice(start if same else 0, pixels), stop - start if same else 0


def _scaled_similarities(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """(S - 1) / tau of unit vectors (c, m) and (c, n): (m, n)."""
    return torch.addmm(left.new_full((), -1.0 / temperature), left.T, right, alpha=1.0 / temperature)
