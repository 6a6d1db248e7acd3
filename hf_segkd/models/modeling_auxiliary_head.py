"""A second, small head on an inner map of the backbone, which takes part only in training (PSPNet, section 3.4)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_segmentation import SegKDAuxiliaryHeadConfig
from .modeling_layers import ConvNorm, resize
from .modeling_segmentation import segmentation_loss


class AuxiliaryHead(nn.Module):
    """3x3 convolution, dropout of whole channels and a classifier, as mmsegmentation's auxiliary FCN head."""

    def __init__(self, in_channels: int, config: SegKDAuxiliaryHeadConfig) -> None:
        super().__init__()
        self.align_corners = config.align_corners
        self.ignore_index = config.semantic_loss_ignore_index
        self.loss_weight = config.auxiliary_loss_weight
        self.conv = ConvNorm(in_channels, config.auxiliary_channels, 3)
        self.dropout = nn.Dropout2d(config.classifier_dropout)
        self.classifier = nn.Conv2d(config.auxiliary_channels, config.num_labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (b, k, h, w) of a map (b, in_channels, h, w)."""
        return self.classifier(self.dropout(F.relu(self.conv(x), inplace=True)))

    def loss(
        self,
        x: Tensor,
        labels: Tensor,
        loss_function: Callable[[Tensor, Tensor, int], Tensor] = segmentation_loss,
    ) -> Tensor:
        """Loss of the logits at the resolution of `labels`, (b, hh, ww), times the loss weight."""
        logits = resize(self(x), labels.shape[-2:], self.align_corners)
        return self.loss_weight * loss_function(logits, labels, self.ignore_index)


def init_mmseg_classifier(classifier: nn.Conv2d) -> None:
    """N(0, 0.01) and zero bias, as mmsegmentation does with every head's last convolution."""
    init.normal_(classifier.weight, std=0.01)
    init.zeros_(classifier.bias)
