"""Inner products of all pairs of rows, and these products as directions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from hf_segkd.losses.adapters import lengths

# Products are squares: those of maps of 1e-4 count, the rounding of a constant map behind a batch norm does not.
ZERO_PRODUCTS = 1e-8


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


def unit_rows(products: Tensor) -> Tensor:
    """Inner products (..., n, n), each row of them scaled to length 1; a row of zeros stays one."""
    return products / lengths(products, dim=-1, keepdim=True, zero=ZERO_PRODUCTS)
