"""Layers that the heads share."""

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
