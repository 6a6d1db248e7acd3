"""CBAM (Woo et al., ECCV 2018): refine a map by a gate per channel, then a gate per position."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


class _MeanAndMaximum(torch.autograd.Function):
    """Mean and maximum of x over `dims`, which are kept with size 1.

    The elements that are the maximum share its gradient, as with `amax`. That one's own gradient takes several times
    as long: it multiplies maps by masks and counts in int64.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        mean, maximum = x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)
        ctx.save_for_backward(x, maximum)
        ctx.dims = dims
        return mean, maximum

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, mean_slope: Tensor, maximum_slope: Tensor) -> tuple[Tensor, None]:
        x, maximum = ctx.saved_tensors
        is_maximum = x == maximum
        number = is_maximum.view(torch.uint8).sum(ctx.dims, keepdim=True, dtype=x.dtype)
        slope = mean_slope * (maximum.numel() / x.numel())
        return torch.where(is_maximum, slope + maximum_slope / number, slope), None


class ChannelGate(nn.Module):
    """Scales each channel by sigmoid(MLP(average) + MLP(maximum)) of the channel over all positions.

    AttnFD eq. 1 and 3; eq. 3 prints the sigmoid only around the average's branch, a misprint. (b, c, h, w)
    in and out. The MLP is shared, c -> c / reduction -> c with a ReLU between, and has biases.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (b, c, h, w)."""
        mean, maximum = _MeanAndMaximum.apply(x, (2, 3))  # (b, c, 1, 1)
        pooled = self.mlp(mean.flatten(1)) + self.mlp(maximum.flatten(1))
        return x * pooled.sigmoid()[:, :, None, None]


class SpatialGate(nn.Module):
    """Scales each position by sigmoid(BN(conv7x7([maximum, mean]))) of the position over all channels.

    AttnFD eq. 2 and 4, applied to the channel-gated map (eq. 2 prints C for A'). (b, c, h, w) in and out. As
    in the authors' code, the convolution has no bias and a BatchNorm follows it, which eq. 4 leaves out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)  # 0.01: CBAM's and the authors' code

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (b, c, h, w)."""
        mean, maximum = _MeanAndMaximum.apply(x, (1,))
        pooled = torch.cat((maximum, mean), dim=1)  # (b, 2, h, w)
        return x * self.norm(self.convolution(pooled)).sigmoid()


class CBAM(nn.Sequential):
    """Convolutional block attention module: channel gate, then spatial gate. (b, c, h, w) in and out.

    Example:
        >>> import torch
        >>> CBAM(64)(torch.rand(2, 64, 8, 8)).shape
        torch.Size([2, 64, 8, 8])
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__(ChannelGate(channels, reduction), SpatialGate())

    @property
    def channel_gate(self) -> ChannelGate:
        """The part with the shared MLP."""
        return self[0]


class ParameterFreeAttention(nn.Module):
    """CBAM without its layers: sigmoid(average + maximum) per channel, then per position of the gated map.

    (b, c, h, w) in and out. The authors' code has it as the 'teacher' mode of its attention.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Refine x (b, c, h, w)."""
        for dims in ((2, 3), (1,)):
            mean, maximum = _MeanAndMaximum.apply(x, dims)
            x = x * (mean + maximum).sigmoid()
        return x
