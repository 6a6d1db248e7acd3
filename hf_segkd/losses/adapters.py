"""Adapters that bring maps of different width or size, and labels, to one shape."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A vector no longer than this counts as zero: it has no direction, and gets no gradient.
ZERO_NORM = 1e-6


class Connector(nn.Sequential):
    """Convolution (1x1 by default) without bias and BatchNorm: takes a student map to the width of the teacher's.

    (b, in_channels, h, w) -> (b, out_channels, h, w). The convolution starts at N(0, sqrt(2 / (kernel area x
    out_channels))), the BatchNorm at 1 and 0, as in the code of Overhaul and AttnFD.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.normal_(convolution.weight, 0.0, math.sqrt(2.0 / (kernel_size**2 * out_channels)))
        super().__init__(convolution, nn.BatchNorm2d(out_channels))


def align(teacher_map: Tensor, student_map: Tensor) -> Tensor:
    """The teacher's map (b, c, h', w') at the student's h and w, bilinear with align_corners=False.

    The student's map is never resized: the gradient then reaches every student position alike.
    """
    if teacher_map.shape[2:] == student_map.shape[2:]:
        return teacher_map
    return F.interpolate(teacher_map, size=student_map.shape[2:], mode="bilinear", align_corners=False)


def resize_labels(
    labels: Tensor, size: tuple[int, int], mode: Literal["nearest", "nearest-exact"] = "nearest"
) -> Tensor:
    """Labels (b, hh, ww) at a feature map's (h, w), by nearest neighbour; int64 in, int64 out.

    Args:
        labels: Class of each pixel or the ignore index.
        size: h and w of the result.
        mode: `nearest` is that of `F.interpolate`: the top-left pixel of each cell, about floor(o * in / out), as
            in the public code of ISDA; `nearest-exact` takes the centre of each cell, which suits maps without
            align_corners.

    Example:
        >>> import torch
        >>> labels = torch.arange(16).reshape(1, 4, 4)
        >>> resize_labels(labels, (2, 2)).tolist(), resize_labels(labels, (2, 2), "nearest-exact").tolist()
        ([[[0, 2], [8, 10]]], [[[5, 7], [13, 15]]])
    """
    if labels.shape[1:] == size:
        return labels
    # Floats hold every integer up to 2^24 exactly, and interpolate has no integer kernel.
    return F.interpolate(labels[:, None].float(), size=size, mode=mode)[:, 0].long()


def class_labels(labels: Tensor, size: tuple[int, int], ignore_index: int) -> Tensor:
    """`resize_labels` with -1 for the ignore index, which may be a class's number too."""
    labels = resize_labels(labels, size)
    return labels.masked_fill(labels == ignore_index, -1)


def pixel_rows(maps: Tensor) -> Tensor:
    """The pixels of maps (b, c, h, w) one below the other, in the order of the labels' (b, h, w): (b*h*w, c)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def lengths(vectors: Tensor, dim: int = 1, keepdim: bool = False, zero: float = ZERO_NORM) -> Tensor:
    """Length of the vectors along `dim`; infinite for those no longer than `zero`.

    What is divided by it is then zero, and zero is its gradient. Dividing by a small number instead, the student's
    zero vectors, usual after a ReLU, would get gradients that are larger than all others by many orders.
    """
    length = vectors.norm(dim=dim, keepdim=keepdim)
    return length.masked_fill(length <= zero, torch.inf)
