"""DeepLabV3+ (Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018), dense or separable."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_deeplabv3plus import DeepLabV3PlusConfig
from .modeling_auxiliary_head import AuxiliaryHead, init_mmseg_classifier
from .modeling_backbone_base import SegKDBackbone, stage_channels, stage_maps
from .modeling_backbone_choice import build_backbone
from .modeling_segmentation import (
    ConvNorm,
    SegKDSegmentationModel,
    SemanticSegmenterOutputWithFeatures,
    SeparableConvNorm,
    resize,
    segmentation_loss,
)


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
        # Resizing one pixel is repeating it, whatever align_corners says.
        maps.append(pooled.expand_as(maps[0]))
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

    Building it never loads weights; `load_pretrained_backbone` does, when asked.
    """

    config: DeepLabV3PlusConfig
    _no_split_modules = ["BasicBlock", "Bottleneck", "InvertedResidual"]  # noqa: RUF012  transformers' own form

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
        self.auxiliary_head = AuxiliaryHead(inner[-1], config) if config.use_auxiliary_head else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        classifiers = [self.classifier, *([self.auxiliary_head.classifier] if self.auxiliary_head is not None else [])]
        if self.config.layout == "mmsegmentation" and any(module is classifier for classifier in classifiers):
            init_mmseg_classifier(module)
        else:
            super()._init_weights(module)

    @property
    def tap_channels(self) -> dict[str, int]:
        """Tap name -> channels of the maps that `output_features=True` returns."""
        low_level, *_, last = self.backbone.channels
        encoder, decoder = self.config.aspp_channels, self.config.decoder_channels
        return {
            "low_level": low_level,
            "low_level_pre": low_level,
            "backbone": last,
            "backbone_post": last,
            "encoder": encoder,
            "encoder_pre": encoder,
            "decoder": decoder,
            "decoder_pre": decoder,
            "logits": self.classifier.out_channels,
            **stage_channels(self.backbone),
        }

    @property
    def tap_norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Tap name -> weight and bias, (c,) each, of the batch norm whose output (plus a shortcut) is that map."""
        norms = {"encoder_pre": self.aspp.project.norm, "decoder_pre": self.decoder.refine.norm}
        if isinstance(self.backbone, SegKDBackbone):
            stage_norms = self.backbone.level_norms()
            norms |= {f"stage{i}_pre": norm for i, norm in enumerate(stage_norms.values(), start=1)}
            first, *_, last = self.backbone.out_features
            ends = {"low_level_pre": first, "backbone": last}
            norms |= {tap: stage_norms[stage] for tap, stage in ends.items() if stage in stage_norms}
        return {tap: (norm.weight.detach(), norm.bias.detach()) for tap, norm in norms.items()}

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
            output_features: Also return `features`, as (b, c, h, w) maps. At stride 4: `low_level` (the map that
                enters the decoder), `decoder` (enters classifier dropout and classifier, after the ReLU) and `logits`
                (the classifier's). At the output stride: `backbone` (the last map, *before* its activation) and
                `encoder` (the ASPP's projection after its ReLU, before dropout). The other side of each activation is
                in `low_level_pre`, `backbone_post`, `encoder_pre` and `decoder_pre`; where a stage has none
                (MobileNetV2, most foreign backbones) both sides are the same map. A foreign backbone that ends in a
                ReLU only offers its maps after it. And all stages of the backbone, whatever its `out_features`:
                `stage1` to `stage4` and `stage1_pre` to `stage4_pre`, of a MobileNetV2 its stages 2, 3, 5 and 7, the
                last at the strides 4, 8 and 16 and the last of all; of a foreign backbone the maps in its
                `out_features`, by the names there.
            output_hidden_states: Also return the backbone's maps of all stages.
            return_dict: False returns a tuple.

        Returns:
            `logits` at the resolution of `pixel_values`; `loss` when labels were given, in training with the auxiliary
            head's part if there is one.

        Raises:
            ValueError: If labels do not fit the images, or a single image is given in training.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        wants_stages = bool(output_features) and isinstance(self.backbone, SegKDBackbone)
        maps = self.backbone.forward_with_filtered_kwargs(
            pixel_values, output_hidden_states=output_hidden_states or wants_stages, return_dict=True
        )
        low_level, last = maps.feature_maps[0], maps.feature_maps[-1]
        encoder_pre = self.aspp(last)
        encoder = F.relu(encoder_pre, inplace=not output_features)
        decoder_pre = self.decoder(self.aspp_dropout(encoder), low_level)
        decoder = F.relu(decoder_pre, inplace=not output_features)
        head_logits = self.classifier(self.classifier_dropout(decoder))
        logits = resize(head_logits, pixel_values.shape[-2:], self.config.align_corners)

        loss, features = None, None
        if labels is not None:
            loss = segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index)
            if self.training and self.auxiliary_head is not None:
                loss = loss + self.auxiliary_head.loss(maps.feature_maps[-2], labels)
        if output_features:
            before = maps.get("pre_activations") or maps.feature_maps
            features = {
                "low_level": low_level,
                "low_level_pre": before[0],
                "backbone": before[-1],
                "backbone_post": last,
                "encoder": encoder,
                "encoder_pre": encoder_pre,
                "decoder": decoder,
                "decoder_pre": decoder_pre,
                "logits": head_logits,
                **stage_maps(self.backbone, maps),
            }
        output = SemanticSegmenterOutputWithFeatures(
            loss=loss,
            logits=logits,
            hidden_states=maps.hidden_states if output_hidden_states else None,
            features=features,
        )
        return output if return_dict else output.to_tuple()
