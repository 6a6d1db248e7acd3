"""The base of PSPNet and ISANet: a head that adds context to the backbone's last map, and a classifier."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BackboneOutput

from .configuration_segmentation import SegKDAuxiliaryHeadConfig
from .modeling_auxiliary_head import AuxiliaryHead, init_mmseg_classifier
from .modeling_backbone_choice import build_backbone
from .modeling_segmentation import SegKDSegmentationModel


class SegKDContextModel(SegKDSegmentationModel):
    """Base of networks with `backbone`, `head`, a plain `classifier` convolution and maybe an `auxiliary_head`.

    Attributes:
        head: From the last map, (b, c, h, w), to the map that enters the classifier, (b, channels, h, w), before its
            ReLU; it ends in `head.project`.
    """

    def __init__(self, config: SegKDAuxiliaryHeadConfig) -> None:
        super().__init__(config)
        num_maps = 2 if config.use_auxiliary_head else 1
        self.backbone = build_backbone(config.backbone_config, num_maps, "the last, and one for the auxiliary head")
        self.head = self.build_head(self.backbone.channels[-1])
        self.classifier_dropout = nn.Dropout2d(config.classifier_dropout)
        self.classifier = nn.Conv2d(config.channels, config.num_labels, 1)
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

    def decode(self, maps: BackboneOutput, keep_sums: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """See the base class."""
        return self.head(maps.feature_maps[-1]), {}

    def batch_norms(self) -> dict[str, nn.BatchNorm2d]:
        """See the base class."""
        return {"decoder_pre": self.head.project.norm, **super().batch_norms()}
