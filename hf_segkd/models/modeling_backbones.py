"""ResNet and MobileNetV2 backbones that return their maps before and after the last activation.

A block returns its residual sum; the ReLU after it is applied by whoever consumes it (the next block, the next stage,
or the backbone's output). So the map before the activation exists without hooks, and nothing overwrites it in place.
Parameter names are torchvision's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from .configuration_backbones import MOBILENET_V2_STAGES, SegKDMobileNetV2Config, SegKDResNetConfig


@dataclass
class SegKDBackboneOutput(BackboneOutput):
    """`BackboneOutput` with the maps before the activation.

    Attributes:
        pre_activations: One (b, c, h, w) map for each of `feature_maps`; the same tensor where a stage ends without
            an activation (MobileNetV2's linear bottlenecks).
    """

    pre_activations: tuple[Tensor, ...] | None = None


class SegKDBackbone(BackboneMixin, PreTrainedModel):
    """What both backbones share: the output, and settings of `PreTrainedModel`."""

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    # Recomputing a block would update its batch norm's running statistics a second time.
    supports_gradient_checkpointing = False

    def get_input_embeddings(self) -> None:
        """None: images are not embedded (FSDP2 asks)."""

    def _output(
        self,
        sums: list[Tensor],
        maps: list[Tensor],
        stem: Tensor,
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> SegKDBackboneOutput | tuple:
        """Packs the maps of the wanted stages, before (`sums`) and after (`maps`) the activation."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        output = SegKDBackboneOutput(
            feature_maps=tuple(maps[i] for i in self.out_indices),
            hidden_states=(stem, *maps) if output_hidden_states else None,
            pre_activations=tuple(sums[i] for i in self.out_indices),
        )
        return output if return_dict else output.to_tuple()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut; returns the sum before the ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection_shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, expansion * width, h / stride, w / stride), before the last ReLU."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries stride and dilation), 1x1 and the shortcut; returns the sum before the ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = projection_shortcut(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, expansion * width, h / stride, w / stride), before the last ReLU."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return y + (x if self.downsample is None else self.downsample(x))


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """1x1 convolution and batch norm where the block changes the shape, otherwise None (identity)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNetStage(nn.Sequential):
    """Blocks of one resolution; the ReLU is between them, not after the last."""

    def forward(self, x: Tensor) -> Tensor:
        """The last block's sum, before its ReLU."""
        first, *others = self
        x = first(x)
        for block in others:
            x = block(F.relu(x, inplace=True))
        return x


class SegKDResNetBackbone(SegKDBackbone):
    """ResNet v1 (He et al., CVPR 2016) with a stride per stage and a dilation per block.

    The stride of a bottleneck sits on its 3x3 convolution, as in torchvision. `layer1` ... `layer4` are the stages
    "stage1" ... "stage4".
    """

    config: SegKDResNetConfig
    _no_split_modules = ["BasicBlock", "Bottleneck"]  # noqa: RUF012  transformers' own form

    def __init__(self, config: SegKDResNetConfig) -> None:
        super().__init__(config)
        block = {"basic": BasicBlock, "bottleneck": Bottleneck}[config.layer_type]
        self.conv1 = nn.Conv2d(config.num_channels, config.width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = config.width
        self.num_features = []
        for i, (stride, dilations) in enumerate(zip(config.strides, config.dilations, strict=True)):
            width = config.width * 2**i
            blocks = []
            for j, dilation in enumerate(dilations):
                blocks.append(block(channels, width, stride if j == 0 else 1, dilation))
                channels = width * block.expansion
            self.add_module(f"layer{i + 1}", ResNetStage(*blocks))
            self.num_features.append(channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            # N(0, sqrt(2 / (k k c_out))), as in the AttnFD code and in torchvision.
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            super()._init_weights(module)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SegKDBackboneOutput | tuple:
        """Feature maps of the stages in `out_features`.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww).
            output_hidden_states: Also return the stem's map and all stages'.
            return_dict: False returns a tuple.
        """
        stem = self.maxpool(F.relu(self.bn1(self.conv1(pixel_values)), inplace=True))
        x, sums, maps = stem, [], []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            sums.append(stage(x))
            x = F.relu(sums[-1])
            maps.append(x)
        return self._output(sums, maps, stem, output_hidden_states, return_dict)


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
    _no_split_modules = ["InvertedResidual"]  # noqa: RUF012  transformers' own form

    def __init__(self, config: SegKDMobileNetV2Config) -> None:
        super().__init__(config)
        channels = round_channels(32 * config.depth_multiplier)
        stem = nn.Conv2d(config.num_channels, channels, 3, 2, padding=1, bias=False)
        layers = [conv_norm_relu6(stem)]
        self.num_features = []
        self.stage_ends = []
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

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SegKDBackboneOutput | tuple:
        """Feature maps of the stages in `out_features`.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww).
            output_hidden_states: Also return the stem's map and all stages'.
            return_dict: False returns a tuple.
        """
        x, maps = pixel_values, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in (0, *self.stage_ends):
                maps.append(x)
        stem, *maps = maps
        return self._output(maps, maps, stem, output_hidden_states, return_dict)
