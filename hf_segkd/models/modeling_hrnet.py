"""HRNetV2 (Wang et al., TPAMI 2021) with its fully convolutional head.

Parameter names of the backbone are those of the authors' code, which timm and mmsegmentation share.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_hrnet import HRNetConfig, SegKDHRNetBackboneConfig
from .modeling_auxiliary_head import init_mmseg_classifier
from .modeling_backbone_base import SegKDBackbone, SegKDBackboneOutput, stage_channels, stage_maps
from .modeling_resnet import BasicBlock, Bottleneck, ResNetStage
from .modeling_segmentation import (
    ConvNorm,
    SegKDSegmentationModel,
    SemanticSegmenterOutputWithFeatures,
    resize,
    segmentation_loss,
)

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
        """Of no level: each branch ends in a sum over several batch norms."""
        return {}

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SegKDBackboneOutput | tuple:
        """Feature maps of the branches in `out_features`.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww), of any size.
            output_hidden_states: Also return the maps of all of `stage_names`.
            return_dict: False returns a tuple.
        """
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
        return self._output([stem, *sums], [stem, *maps], output_hidden_states, return_dict)


class HRNetForSemanticSegmentation(SegKDSegmentationModel):
    """HRNet with `backbone`, `decoder` (a 1x1 convolution on all branches) and a plain `classifier` convolution.

    Building it never loads weights; `load_pretrained_backbone` does, when asked.
    """

    config: HRNetConfig

    def __init__(self, config: HRNetConfig) -> None:
        super().__init__(config)
        self.backbone = SegKDHRNetBackbone(config.backbone_config)
        _stem, *widths = self.backbone.num_features
        self.decoder = ConvNorm(sum(widths), sum(widths), 1)
        self.classifier = nn.Conv2d(sum(widths), config.num_labels, 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.classifier:  # as in mmsegmentation
            init_mmseg_classifier(module)
        else:
            super()._init_weights(module)

    @property
    def tap_channels(self) -> dict[str, int]:
        """Tap name -> channels of the maps that `output_features=True` returns."""
        _stem, high, *_, low = self.backbone.num_features
        return {
            "low_level": high,
            "low_level_pre": high,
            "backbone": low,
            "backbone_post": low,
            "encoder": self.classifier.in_channels,
            "encoder_pre": self.classifier.in_channels,
            "decoder": self.classifier.in_channels,
            "decoder_pre": self.classifier.in_channels,
            "logits": self.classifier.out_channels,
            **stage_channels(self.backbone),
        }

    @property
    def tap_norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Tap name -> weight and bias, (c,) each, of the batch norm whose output is that map.

        The branches of the backbone are sums over several batch norms and have none of their own.
        """
        return {"decoder_pre": (self.decoder.norm.weight.detach(), self.decoder.norm.bias.detach())}

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_features: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutputWithFeatures | tuple:
        """Scores of each class for each pixel.

        Args:
            pixel_values: Normalised images, (b, 3, hh, ww), of any size.
            labels: Class of each pixel, (b, hh, ww), 0..k-1 or `config.semantic_loss_ignore_index`.
            output_features: Also return `features`, as (b, c, h, w) maps. `stage1` to `stage4`: the backbone's last
                maps at strides 4, 8, 16 and 32, after their ReLU, and `stage1_pre` to `stage4_pre` before it.
                `low_level` and `low_level_pre` are stage 1's; `backbone` is stage 4's *before* its ReLU and
                `backbone_post` after it. At stride 4: `encoder` (the four maps, resized and concatenated; no
                activation follows, so `encoder_pre` is the same map), `decoder` (enters the classifier, after the
                ReLU), `decoder_pre` (before it) and `logits` (the classifier's).
            output_hidden_states: Also return the backbone's maps, the stem's and the four last ones.
            return_dict: False returns a tuple.

        Returns:
            `logits` at the resolution of `pixel_values`; `loss` when labels were given.

        Raises:
            ValueError: If labels do not fit the images.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        maps = self.backbone(pixel_values, output_hidden_states=True, return_dict=True)
        _stem, high, *lower = maps.hidden_states
        resized = [resize(x, high.shape[-2:], self.config.align_corners) for x in lower]
        encoder = torch.cat([high, *resized], dim=1)
        decoder_pre = self.decoder(encoder)
        decoder = F.relu(decoder_pre, inplace=not output_features)
        head_logits = self.classifier(decoder)
        logits = resize(head_logits, pixel_values.shape[-2:], self.config.align_corners)

        features = None
        if output_features:
            stages = stage_maps(self.backbone, maps)
            features = {
                "low_level": stages["stage1"],
                "low_level_pre": stages["stage1_pre"],
                "backbone": stages["stage4_pre"],
                "backbone_post": stages["stage4"],
                "encoder": encoder,
                "encoder_pre": encoder,
                "decoder": decoder,
                "decoder_pre": decoder_pre,
                "logits": head_logits,
                **stages,
            }
        output = SemanticSegmenterOutputWithFeatures(
            loss=None if labels is None else segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index),
            logits=logits,
            hidden_states=maps.hidden_states if output_hidden_states else None,
            features=features,
        )
        return output if return_dict else output.to_tuple()
