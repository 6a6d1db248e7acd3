"""Layers that the heads share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution of stride 1 that keeps the size, without bias, and batch norm; the caller applies the ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, h, w)."""
        return self.norm(self.conv(x))


class SeparableConvNorm(nn.Module):
    """Depthwise `ConvNorm`, ReLU, 1x1 `ConvNorm` across channels; the caller applies the last ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNorm(in_channels, in_channels, kernel_size, dilation, groups=in_channels)
        self.pointwise = ConvNorm(in_channels, out_channels, 1)

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The last batch norm."""
        return self.pointwise.norm

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, h, w)."""
        return self.pointwise(F.relu(self.depthwise(x), inplace=True))


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear resize of (b, c, h, w) maps to `size` = (height, width)."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def is_traced() -> bool:
    """Whether a graph is being made of the network for another runtime, rather than the network run."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def spread(pixel: Tensor, size: tuple[int, int]) -> Tensor:
    """A (b, c, 1, 1) map of one pixel, repeated to (b, c, h, w): what resizing it gives, whatever align_corners says.

    In a graph it is a resize, with the same bits. Of `expand` LiteRT makes a file that does not load or is wrong
    without a word, ncnn's converter fails, and ExecuTorch cuts the network in two. In training the gradient of a
    resize would sum in another order.
    """
    # Weights of the two neighbours are 1 and 0; without align_corners they would be such that they round.
    return resize(pixel, size, align_corners=True) if is_traced() else pixel.expand(-1, -1, *size)
