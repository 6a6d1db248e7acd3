"""ResNet with a dilation per block, and its maps before and after each stage's last ReLU. Names as in torchvision."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_backbones import SegKDResNetConfig
from .modeling_backbone_base import SegKDBackbone


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut; returns the sum before the ReLU."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, dilate_second_conv: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        second = dilation if dilate_second_conv else 1
        self.conv2 = nn.Conv2d(width, width, 3, padding=second, dilation=second, bias=False)
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


def deep_stem(in_channels: int, width: int) -> nn.Sequential:
    """Three 3x3 convolutions at half the image's resolution, without the last ReLU. Names as in mmsegmentation."""
    layers = []
    for i, (channels, out_channels) in enumerate(
        [(in_channels, width // 2), (width // 2, width // 2), (width // 2, width)]
    ):
        conv = nn.Conv2d(channels, out_channels, 3, 2 if i == 0 else 1, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


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
    "stage1" ... "stage4". The convolutions of a deep stem are in `stem`.
    """

    config: SegKDResNetConfig
    levels = ("stage1", "stage2", "stage3", "stage4")
    _no_split_modules = ["BasicBlock", "Bottleneck"]  # noqa: RUF012  transformers' own form

    def __init__(self, config: SegKDResNetConfig) -> None:
        super().__init__(config)
        block = {"basic": BasicBlock, "bottleneck": Bottleneck}[config.layer_type]
        options = {"dilate_second_conv": config.dilate_second_conv} if block is BasicBlock else {}
        if config.deep_stem:
            self.stem = deep_stem(config.num_channels, config.width)
        else:
            self.conv1 = nn.Conv2d(config.num_channels, config.width, 7, 2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(config.width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels = config.width
        self.num_features = [channels]
        for i, (stride, dilations) in enumerate(zip(config.strides, config.dilations, strict=True)):
            width = config.width * 2**i
            blocks = []
            for j, dilation in enumerate(dilations):
                blocks.append(block(channels, width, stride if j == 0 else 1, dilation, **options))
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

    def level_norms(self) -> dict[str, nn.BatchNorm2d]:
        """See the base class."""
        blocks = [stage[-1] for stage in (self.layer1, self.layer2, self.layer3, self.layer4)]
        norms = [block.bn2 if isinstance(block, BasicBlock) else block.bn3 for block in blocks]
        return dict(zip(self.levels, norms, strict=True))

    def stages(self, pixel_values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """See the base class."""
        stem = self.stem(pixel_values) if self.config.deep_stem else self.bn1(self.conv1(pixel_values))
        stem = self.maxpool(F.relu(stem, inplace=True))
        x, sums, maps = stem, [stem], [stem]  # max-pooling follows the stem's ReLU: there is no map before it
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            sums.append(stage(x))
            x = F.relu(sums[-1])
            maps.append(x)
        return sums, maps
