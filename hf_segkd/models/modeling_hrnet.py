"""HRNetV2 (Wang et al., TPAMI 2021) with its fully convolutional head.

Parameter names of the backbone are those of the authors' code, which timm and mmsegmentation share.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput

from .configuration_backbones import SegKDHRNetBackboneConfig
from .configuration_hrnet import HRNetConfig
from .modeling_auxiliary_head import init_mmseg_classifier
from .modeling_backbone_base import SegKDBackbone
from .modeling_layers import ConvNorm, resize
from .modeling_resnet import BasicBlock, Bottleneck, ResNetStage
from .modeling_segmentation import SegKDSegmentationModel

STEM_CHANNELS = 64  # for every width, as in the paper; the bottlenecks after it have four times as many


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def conv_norm_relu(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm and ReLU."""
    return conv_norm(in_channels, out_channels, 3, stride).append(nn.ReLU(inplace=True))


def exchange_path(widths: list[int], source: int, target: int) -> nn.Module:
    """From branch `source` to the channels of branch `target`, and to its resolution where that is lower."""
    if source == target:
        return nn.Identity()
    if source > target:
        return conv_norm(widths[source], widths[target], 1)
    steps = [conv_norm_relu(widths[source], widths[source], 2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, conv_norm(widths[source], widths[target], 3, 2))


class HighResolutionModule(nn.Module):
    """Basic blocks on each branch, then an exchange: each branch becomes the sum of all, before its ReLU.

    Args:
        widths: Channels of each branch, from the highest resolution on.
        num_blocks: Blocks on each branch.
    """

    def __init__(self, widths: list[int], num_blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            ResNetStage(*(BasicBlock(width, width, stride=1, dilation=1) for _ in range(num_blocks)))
            for width in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(exchange_path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One (b, c, h, w) map per branch, after its ReLU, to one of the same shape before it."""
        maps = [F.relu(branch(x), inplace=True) for branch, x in zip(self.branches, maps, strict=True)]
        return [self._exchange(maps, target) for target in range(len(maps))]

    def _exchange(self, maps: list[Tensor], target: int) -> Tensor:
        size = maps[target].shape[-2:]
        terms = []
        for source, (x, path) in enumerate(zip(maps, self.fuse_layers[target], strict=True)):
            term = path(x)
            if source > target:
                # Twice, as in mmsegmentation, whose weights are trained so: by a power of two, and then to the size
                # of the branch, which is smaller wherever a stride has rounded up.
                factor = 2 ** (source - target)
                term = resize(term, (term.shape[-2] * factor, term.shape[-1] * factor), align_corners=False)
                term = resize(term, size, align_corners=False)
            terms.append(term)
        return reduce(torch.add, terms)


class HighResolutionStage(nn.Sequential):
    """Modules on the same branches; the ReLU is between them, not after the last."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The last module's sums, before their ReLU."""
        first, *others = self
        maps = first(maps)
        for module in others:
            maps = module([F.relu(x, inplace=True) for x in maps])
        return maps


class SegKDHRNetBackbone(SegKDBackbone):
    """HRNet: keeps a branch at stride 4 and adds one at stride 8, 16 and 32 beside it, which all exchange maps.

    The stages of the paper have several maps each. "branch1" to "branch4" are those of the last one.
    """

    config: SegKDHRNetBackboneConfig
    levels = ("branch1", "branch2", "branch3", "branch4")
    _no_split_modules = ["BasicBlock", "Bottleneck"]  # noqa: RUF012  transformers' own form

    def __init__(self, config: SegKDHRNetBackboneConfig) -> None:
        super().__init__(config)
        stem, stem_out = STEM_CHANNELS, STEM_CHANNELS * Bottleneck.expansion
        self.conv1 = nn.Conv2d(config.num_channels, stem, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.conv2 = nn.Conv2d(stem, stem, 3, 2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem)
        self.layer1 = ResNetStage(
            *(Bottleneck(stem if i == 0 else stem_out, stem, stride=1, dilation=1) for i in range(config.stem_blocks))
        )
        widths = [config.width * 2**i for i in range(4)]
        first = conv_norm_relu(stem_out, widths[0])
        self.transition1 = nn.ModuleList([first, nn.Sequential(conv_norm_relu(stem_out, widths[1], 2))])
        for stage, num_modules in enumerate(config.num_modules, start=2):
            modules = (HighResolutionModule(widths[:stage], config.num_blocks) for _ in range(num_modules))
            self.add_module(f"stage{stage}", HighResolutionStage(*modules))
            if stage < 4:
                kept = [nn.Identity() for _ in range(stage)]
                added = nn.Sequential(conv_norm_relu(widths[stage - 1], widths[stage], 2))
                self.add_module(f"transition{stage}", nn.ModuleList([*kept, added]))
        self.num_features = [stem, *widths]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # as in mmsegmentation
        else:
            super()._init_weights(module)

    def level_norms(self) -> dict[str, nn.BatchNorm2d]:
        """Empty for every level: each branch ends in a sum over several batch norms."""
        return {}

    def stages(self, pixel_values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """See the base class."""
        x = F.relu(self.bn1(self.conv1(pixel_values)), inplace=True)
        stem = F.relu(self.bn2(self.conv2(x)), inplace=True)
        sums = [self.layer1(stem)]
        for transition, stage in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            maps = [F.relu(x) for x in sums]
            # A new branch starts from the lowest resolution so far.
            sums = stage([layer(maps[min(i, len(maps) - 1)]) for i, layer in enumerate(transition)])
        maps = [F.relu(x) for x in sums]
        return [stem, *sums], [stem, *maps]


class HRNetForSemanticSegmentation(SegKDSegmentationModel):
    """HRNet with `backbone`, `decoder` (a 1x1 convolution on all branches) and a plain `classifier` convolution.

    One feature beside those of every network: `encoder`, the maps of the four branches, at stride 4, concatenated.
    No activation follows, so `encoder_pre` is the same map. `decoder` and `logits` are at stride 4.

    Example:
        >>> import torch
        >>> from hf_segkd import HRNetConfig, HRNetForSemanticSegmentation
        >>> network = HRNetForSemanticSegmentation(HRNetConfig(num_labels=19)).eval()
        >>> tuple(network(torch.randn(1, 3, 64, 96)).logits.shape)
        (1, 19, 64, 96)
    """

    config: HRNetConfig
    reads_stages = True
    _no_split_modules = ["BasicBlock", "Bottleneck"]  # noqa: RUF012  transformers' own form

    def __init__(self, config: HRNetConfig) -> None:
        super().__init__(config)
        self.backbone = SegKDHRNetBackbone(config.backbone_config)
        _stem, *widths = self.backbone.num_features
        self.decoder = ConvNorm(sum(widths), sum(widths), 1)
        self.classifier_dropout = nn.Identity()
        self.classifier = nn.Conv2d(sum(widths), config.num_labels, 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.classifier:  # as in mmsegmentation
            init_mmseg_classifier(module)
        else:
            super()._init_weights(module)

    def decode(self, maps: BackboneOutput, keep_sums: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """See the base class."""
        _stem, high, *lower = maps.hidden_states
        resized = [resize(x, high.shape[-2:], self.config.align_corners) for x in lower]
        encoder = torch.cat([high, *resized], dim=1)
        return self.decoder(encoder), {"encoder": encoder, "encoder_pre": encoder}

    def own_tap_channels(self) -> dict[str, int]:
        """See the base class."""
        return dict.fromkeys(("encoder", "encoder_pre"), self.classifier.in_channels)

    def batch_norms(self) -> dict[str, nn.BatchNorm2d]:
        """See the base class; only for the decoder, since each branch of the backbone is a sum over several."""
        return {"decoder_pre": self.decoder.norm, **super().batch_norms()}
