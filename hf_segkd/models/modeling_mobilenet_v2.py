"""MobileNetV2 with a dilation per block. Parameter names as in torchvision."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_backbones import MOBILENET_V2_STAGES, SegKDMobileNetV2Config
from .modeling_backbone_base import SegKDBackbone


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection (no activation after it), shortcut where shapes allow."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        expansion: int,
        pad_before_expansion: bool,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.input_padding = dilation if pad_before_expansion else 0
        self.has_shortcut = stride == 1 and in_channels == out_channels
        depthwise = nn.Conv2d(
            hidden,
            hidden,
            3,
            stride,
            padding=0 if pad_before_expansion else dilation,
            dilation=dilation,
            groups=hidden,
            bias=False,
        )
        layers = [conv_norm_relu6(nn.Conv2d(in_channels, hidden, 1, bias=False))] if expansion > 1 else []
        layers.append(conv_norm_relu6(depthwise))
        layers.append(nn.Conv2d(hidden, out_channels, 1, bias=False))
        layers.append(nn.BatchNorm2d(out_channels))
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, h / stride, w / stride)."""
        y = self.conv(F.pad(x, (self.input_padding,) * 4) if self.input_padding else x)
        return x + y if self.has_shortcut else y


def conv_norm_relu6(conv: nn.Conv2d) -> nn.Sequential:
    """The convolution, batch norm and ReLU6 under torchvision's names."""
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6(inplace=True))


def round_channels(channels: float) -> int:
    """Nearest multiple of 8, at least 8, never more than 10 % below: the rounding of MobileNetV2's own code."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SegKDMobileNetV2Backbone(SegKDBackbone):
    """MobileNetV2 (Sandler et al., CVPR 2018) without its 1280-channel convolution.

    A stage ends in a linear bottleneck, so `pre_activations` and `feature_maps` are the same tensors. `features.0` is
    the stem, `features.1` ... `features.17` are the blocks of "stage1" ... "stage7".
    """

    config: SegKDMobileNetV2Config
    levels = ("stage2", "stage3", "stage5", "stage7")
    _no_split_modules = ["InvertedResidual"]  # noqa: RUF012  transformers' own form

    def __init__(self, config: SegKDMobileNetV2Config) -> None:
        super().__init__(config)
        channels = round_channels(32 * config.depth_multiplier)
        stem = nn.Conv2d(config.num_channels, channels, 3, 2, padding=1, bias=False)
        layers = [conv_norm_relu6(stem)]
        self.num_features = [channels]
        self.stage_ends = [0]
        for (expansion, width, _), stride, dilations in zip(
            MOBILENET_V2_STAGES, config.strides, config.dilations, strict=True
        ):
            out_channels = round_channels(width * config.depth_multiplier)
            for j, dilation in enumerate(dilations):
                layers.append(
                    InvertedResidual(
                        channels,
                        out_channels,
                        stride if j == 0 else 1,
                        dilation,
                        expansion,
                        config.pad_before_expansion,
                    )
                )
                channels = out_channels
            self.num_features.append(channels)
            self.stage_ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight)  # fan_in, as in the AttnFD code
        else:
            super()._init_weights(module)

    def level_norms(self) -> dict[str, nn.BatchNorm2d]:
        """See the base class."""
        ends = dict(zip(self.stage_names, self.stage_ends, strict=True))
        return {level: self.features[ends[level]].conv[-1] for level in self.levels}

    def stages(self, pixel_values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """See the base class."""
        x, maps = pixel_values, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.stage_ends:
                maps.append(x)
        return maps, maps
