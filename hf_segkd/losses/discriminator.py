"""The discriminator that distinguishes a teacher's logits from a student's (SKDS; SAGAN's, on logits)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Four halvings and a 4x4 convolution without padding leave one output for a map of this size.
SMALLEST_SIDE = 64


class SpectralNormConv2d(nn.Conv2d):
    r"""Convolution whose weight W is divided by an estimate of its largest singular value, $u^T W v$.

    One power iteration a call, $v \propto W^T u$, $u \propto W v$, with u and v constants of the gradient. In training
    mode u is kept for the next call; `nn.utils.parametrizations.spectral_norm` does not iterate in eval mode.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.register_buffer("u", F.normalize(torch.randn(out_channels), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, h', w')."""
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
            if self.training:
                self.u.copy_(u)
        return self._conv_forward(x, self.weight / torch.dot(u, matrix @ v), self.bias)


class SelfAttention(nn.Module):
    """The map plus gamma times what each position gathers from all others; gamma starts at 0.

    Written out, as fused attention has no second derivative, which the gradient penalty needs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to the same; one matrix of h*w by h*w for each image."""
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)  # (b, h*w, h*w)
        return x + self.gamma * (value @ attention.transpose(1, 2)).view_as(x)


class Discriminator(nn.Sequential):
    """Score of a logit map, high for a teacher's: (b, k, h, w) to (b, 1, h', w').

    As released with SKDS: batch norm of the logits, four spectrally normalised 4x4 convolutions of stride 2 to 64, 128,
    256 and 512 channels with LeakyReLU 0.1, self-attention after the last two, a 4x4 convolution; 3,191,721 parameters
    for 19 classes. It sees only the logits, not the image, although the paper says so. A side shorter than 64 is
    enlarged to 64, bilinearly: the released network can't take such maps at all.

    Args:
        num_labels: Number of classes k.
    """

    def __init__(self, num_labels: int) -> None:
        layers: list[nn.Module] = [nn.BatchNorm2d(num_labels)]
        widths = (num_labels, 64, 128, 256, 512)
        for before, width in itertools.pairwise(widths):
            layers += [SpectralNormConv2d(before, width, 4, stride=2, padding=1), nn.LeakyReLU(0.1)]
            if width >= 256:
                layers.append(SelfAttention(width))
        super().__init__(*layers, nn.Conv2d(512, 1, 4))

    def forward(self, logits: Tensor) -> Tensor:
        """See the class."""
        height, width = logits.shape[2:]
        if min(height, width) < SMALLEST_SIDE:
            size = (max(height, SMALLEST_SIDE), max(width, SMALLEST_SIDE))
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return super().forward(logits)
