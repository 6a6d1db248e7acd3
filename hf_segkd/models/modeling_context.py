"""What PSPNet and ISANet share: a head that adds context to the backbone's last map, and a classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_segmentation import SegKDSegmentationConfig
from .modeling_auxiliary_head import AuxiliaryHead, init_mmseg_classifier
from .modeling_backbone_base import SegKDBackbone, stage_channels, stage_maps
from .modeling_backbone_choice import build_backbone
from .modeling_segmentation import (
    SegKDSegmentationModel,
    SemanticSegmenterOutputWithFeatures,
    resize,
    segmentation_loss,
)


class SegKDContextModel(SegKDSegmentationModel):
    """Base of networks with `backbone`, `head`, a plain `classifier` convolution and an `auxiliary_head`.

    Building it never loads weights; `load_pretrained_backbone` does, when asked.

    Attributes:
        head: From the last map, (b, c, h, w), to the map that enters the classifier, (b, channels, h, w), before its
            ReLU; it ends in `head.project`.
    """

    _no_split_modules = ["BasicBlock", "Bottleneck", "InvertedResidual"]  # noqa: RUF012  transformers' own form

    def __init__(self, config: SegKDSegmentationConfig) -> None:
        super().__init__(config)
        num_maps = 2 if config.use_auxiliary_head else 1
        self.backbone = build_backbone(config.backbone_config, num_maps, "the last, and one for the auxiliary head")
        self.head = self.build_head(self.backbone.channels[-1])
        self.classifier_dropout = nn.Dropout2d(config.classifier_dropout)
        self.classifier = nn.Conv2d(config.channels, config.num_labels, 1)
        self.auxiliary_head = None
        if config.use_auxiliary_head:
            self.auxiliary_head = AuxiliaryHead(self.backbone.channels[-2], config)
        self.post_init()

    def build_head(self, in_channels: int) -> nn.Module:
        """The head on a map of `in_channels` channels."""
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.classifier or (self.auxiliary_head is not None and module is self.auxiliary_head.classifier):
            init_mmseg_classifier(module)
        else:
            super()._init_weights(module)

    @property
    def tap_channels(self) -> dict[str, int]:
        """Tap name -> channels of the maps that `output_features=True` returns."""
        last, decoder = self.backbone.channels[-1], self.config.channels
        return {
            "backbone": last,
            "backbone_post": last,
            "decoder": decoder,
            "decoder_pre": decoder,
            "logits": self.classifier.out_channels,
            **stage_channels(self.backbone),
        }

    @property
    def tap_norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Tap name -> weight and bias, (c,) each, of the batch norm whose output (plus a shortcut) is that map."""
        norms = {"decoder_pre": self.head.project.norm}
        if isinstance(self.backbone, SegKDBackbone):
            stage_norms = self.backbone.level_norms()
            norms |= {f"stage{i}_pre": norm for i, norm in enumerate(stage_norms.values(), start=1)}
            last = self.backbone.out_features[-1]
            norms |= {"backbone": stage_norms[last]} if last in stage_norms else {}
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
            output_features: Also return `features`, as (b, c, h, w) maps, all but the stages at the resolution of the
                backbone's last: `backbone` (that map, *before* its activation), `decoder` (enters dropout and
                classifier, after the ReLU) and `logits` (the classifier's). The other side of each activation is in
                `backbone_post` and `decoder_pre`; where a stage has none (MobileNetV2, most foreign backbones) both
                sides are the same map. And `stage1` to `stage4` and `stage1_pre` to `stage4_pre`, as of
                `DeepLabV3PlusForSemanticSegmentation`.
            output_hidden_states: Also return the backbone's maps of all stages.
            return_dict: False returns a tuple.

        Returns:
            `logits` at the resolution of `pixel_values`; `loss` when labels were given, in training with the auxiliary
            head's part.

        Raises:
            ValueError: If labels do not fit the images, or in training a single image is given to a head that can't
                be trained on one.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        wants_stages = bool(output_features) and isinstance(self.backbone, SegKDBackbone)
        maps = self.backbone.forward_with_filtered_kwargs(
            pixel_values, output_hidden_states=output_hidden_states or wants_stages, return_dict=True
        )
        decoder_pre = self.head(maps.feature_maps[-1])
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
                "backbone": before[-1],
                "backbone_post": maps.feature_maps[-1],
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
