"""Inner products of all pairs of rows, with half the work in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # x is both factors: autograd would make a product, and a map in memory, for each.
        return (gradient + gradient.mT) @ x


def gram_matrix(x: Tensor) -> Tensor:
    """The product of x, (..., n, p), and its transpose: (..., n, n)."""
    return _Gram.apply(x)
