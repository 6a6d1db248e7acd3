"""DeepLabV3+ (Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018), dense or separable."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BackboneOutput

from .configuration_deeplabv3plus import DeepLabV3PlusConfig
from .modeling_auxiliary_head import AuxiliaryHead, init_mmseg_classifier
from .modeling_backbone_choice import build_backbone
from .modeling_layers import ConvNorm, SeparableConvNorm, resize, spread
from .modeling_segmentation import SegKDSegmentationModel


class AtrousSpatialPyramidPooling(nn.Module):
    """1x1, three dilated 3x3 and an image-level branch, concatenated in this order and projected."""

    def __init__(self, in_channels: int, config: DeepLabV3PlusConfig) -> None:
        super().__init__()
        channels = config.aspp_channels
        separable = config.layout == "mmsegmentation"
        dilated = SeparableConvNorm if separable else ConvNorm
        self.branches = nn.ModuleList(
            [ConvNorm(in_channels, channels, 1), *(dilated(in_channels, channels, 3, r) for r in config.atrous_rates)]
        )
        self.image_branch = ConvNorm(in_channels, channels, 1)
        self.project = ConvNorm(5 * channels, channels, 3 if separable else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Encoder map before its ReLU, (b, channels, h, w), from (b, in_channels, h, w).

        Raises:
            ValueError: In training with one image, see the message.
        """
        norm = self.image_branch.norm
        # SyncBatchNorm is no BatchNorm2d: it sees the other processes' images as well.
        if norm.training and x.shape[0] == 1 and isinstance(norm, nn.BatchNorm2d):
            raise ValueError(
                "DeepLabV3+ cannot be trained on a batch of one image: the ASPP's image-level branch averages each "
                "channel to a single value, whose batch statistics are undefined. Use a batch of 2 or more, drop an "
                "incomplete last batch (dataloader_drop_last=True), or put the model into eval()."
            )
        pooled = F.relu(self.image_branch(x.mean(dim=(2, 3), keepdim=True)), inplace=True)
        maps = [F.relu(branch(x), inplace=True) for branch in self.branches]
        maps.append(spread(pooled, maps[0].shape[-2:]))
        return self.project(torch.cat(maps, dim=1))


class DeepLabV3PlusDecoder(nn.Module):
    """Joins the encoder's map with the low-level map and refines both with two 3x3 convolutions."""

    def __init__(self, low_level_in_channels: int, config: DeepLabV3PlusConfig) -> None:
        super().__init__()
        self.align_corners = config.align_corners
        conv_norm = SeparableConvNorm if config.layout == "mmsegmentation" else ConvNorm
        self.low_level = ConvNorm(low_level_in_channels, config.low_level_channels, 1)
        self.fuse = conv_norm(config.aspp_channels + config.low_level_channels, config.decoder_channels, 3)
        self.dropout = nn.Dropout(config.decoder_dropout)
        self.refine = conv_norm(config.decoder_channels, config.decoder_channels, 3)

    def forward(self, encoder: Tensor, low_level: Tensor) -> Tensor:
        """Decoder map before its ReLU, (b, decoder_channels, h4, w4), at the resolution of `low_level`."""
        encoder = resize(encoder, low_level.shape[-2:], self.align_corners)
        low_level = F.relu(self.low_level(low_level), inplace=True)
        x = F.relu(self.fuse(torch.cat([encoder, low_level], dim=1)), inplace=True)
        return self.refine(self.dropout(x))


class DeepLabV3PlusForSemanticSegmentation(SegKDSegmentationModel):
    """DeepLabV3+ with `backbone`, `aspp`, `decoder`, a plain `classifier` convolution, maybe an `auxiliary_head`.

    Features beside those of every network: `low_level`, the backbone's first map, at stride 4, which enters the
    decoder; `encoder`, the ASPP's projection after its ReLU and before dropout, at the output stride; and the other
    side of their activations, `low_level_pre` and `encoder_pre`. `decoder` and `logits` are at stride 4.

    Example:
        >>> import torch
        >>> from hf_segkd import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
        >>> network = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(num_labels=21)).eval()
        >>> network.num_parameters()
        16608181
        >>> output = network(torch.randn(1, 3, 65, 97), output_features=True)
        >>> tuple(output.logits.shape), tuple(output.features["decoder"].shape)
        ((1, 21, 65, 97), (1, 256, 17, 25))
    """

    config: DeepLabV3PlusConfig

    def __init__(self, config: DeepLabV3PlusConfig) -> None:
        super().__init__(config)
        self.backbone = build_backbone(
            config.backbone_config,
            3 if config.use_auxiliary_head else 2,
            "a low-level map (the first), the last one, and the one before it for an auxiliary head",
        )
        low_level_channels, *inner, channels = self.backbone.channels
        self.aspp = AtrousSpatialPyramidPooling(channels, config)
        self.aspp_dropout = nn.Dropout(config.aspp_dropout)
        self.decoder = DeepLabV3PlusDecoder(low_level_channels, config)
        dropout = nn.Dropout2d if config.layout == "mmsegmentation" else nn.Dropout
        self.classifier_dropout = dropout(config.classifier_dropout)
        self.classifier = nn.Conv2d(config.decoder_channels, config.num_labels, 1)
        if config.use_auxiliary_head:
            self.auxiliary_head = AuxiliaryHead(inner[-1], config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        classifiers = [self.classifier, *([self.auxiliary_head.classifier] if self.auxiliary_head is not None else [])]
        if self.config.layout == "mmsegmentation" and any(module is classifier for classifier in classifiers):
            init_mmseg_classifier(module)
        else:
            super()._init_weights(module)

    def decode(self, maps: BackboneOutput, keep_sums: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """See the base class."""
        low_level, *_, last = maps.feature_maps
        encoder_pre = self.aspp(last)
        encoder = F.relu(encoder_pre, inplace=not keep_sums)
        taps = {
            "low_level": low_level,
            "low_level_pre": (maps.get("pre_activations") or maps.feature_maps)[0],
            "encoder": encoder,
            "encoder_pre": encoder_pre,
        }
        return self.decoder(self.aspp_dropout(encoder), low_level), taps

    def own_tap_channels(self) -> dict[str, int]:
        """See the base class."""
        low_level, encoder = self.backbone.channels[0], self.config.aspp_channels
        return {"low_level": low_level, "low_level_pre": low_level, "encoder": encoder, "encoder_pre": encoder}

    def batch_norms(self) -> dict[str, nn.BatchNorm2d]:
        """See the base class."""
        norms = super().batch_norms()
        if "low_level_pre" in norms and self.backbone.out_features[0] != self.backbone.levels[0]:
            del norms["low_level_pre"]
        return {**norms, "encoder_pre": self.aspp.project.norm, "decoder_pre": self.decoder.refine.norm}
