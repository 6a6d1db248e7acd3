"""Configuration of PSPNet; the defaults build mmsegmentation's "d8" networks, which FAKD distils."""

from __future__ import annotations

from typing import Any

from .configuration_segmentation import SegKDAuxiliaryHeadConfig, is_shallow


class PSPNetConfig(SegKDAuxiliaryHeadConfig):
    """Configuration of `PSPNetForSemanticSegmentation` (Zhao et al., CVPR 2017).

    Sources of the defaults: mmsegmentation's pspnet_r101-d8 and pspnet_r18-d8, teacher and student in FAKD's tables
    (arXiv 2208.14143). In training, with 19 classes, they have 68.0 M and 12.8 M parameters.

    Args:
        backbone: "resnet18" (default), "resnet34", "resnet50", "resnet101" or "mobilenet_v2", at output stride 8 in the
            geometry of `mmseg_backbone_config`.
        backbone_config: Instead of a name, the configuration of any backbone `AutoBackbone` can build, or its dict
            with "model_type". The last of its feature maps is pooled, the one before it enters the auxiliary head.
        channels: Channels of each pooled map and of the map that enters the classifier: 512, and 128 on ResNet-18 and
            -34.
        pool_scales: Rows (and columns) of each pooled map: 1, 2, 3, 6 in the paper.
        classifier_dropout: Probability, 0 to 1, with which channels are dropped before the classifiers.
        use_auxiliary_head: Whether the auxiliary head takes part in training.
        auxiliary_channels: Its channels, 256, and 64 on ResNet-18 and -34.
        auxiliary_loss_weight: Weight of its cross-entropy.
        num_channels: Channels of the images, 3 by default; with `backbone_config` those that it says.
        align_corners: How every map is resized, the logits included: False by default.
        semantic_loss_ignore_index: Label of the pixels that have no class.

    Raises:
        ValueError: If a value is out of range, a keyword is unknown, `num_labels` is below 2, or a backbone is spelt
            both by name and by `backbone_config` and the two differ.

    Example:
        >>> from hf_segkd import PSPNetConfig
        >>> PSPNetConfig(backbone="resnet18", num_labels=150).channels
        128
    """

    model_type = "segkd-pspnet"

    channels: int | None = None
    pool_scales: list[int] | tuple[int, ...] = (1, 2, 3, 6)

    def defaults(self) -> dict[str, Any]:
        """See the base class."""
        return {**super().defaults(), "channels": 128 if is_shallow(self.backbone) else 512}

    def check_ranges(self) -> None:
        """See the base class."""
        self.pool_scales = list(self.pool_scales)
        if not self.pool_scales or min(self.pool_scales) < 1:
            raise ValueError(f"pool_scales must be positive numbers of rows, at least one, got {self.pool_scales}.")
        super().check_ranges()
