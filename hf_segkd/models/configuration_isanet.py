"""Configuration of ISANet; the defaults build mmsegmentation's "d8" networks, which FAKD distils."""

from __future__ import annotations

from typing import Any

from .configuration_segmentation import SegKDAuxiliaryHeadConfig, is_shallow


class ISANetConfig(SegKDAuxiliaryHeadConfig):
    """Configuration of `ISANetForSemanticSegmentation` (Huang et al., arXiv 1907.12273).

    Sources of the defaults: mmsegmentation's isanet_r101-d8, the teacher in FAKD's tables (arXiv 2208.14143), with
    56.7 M parameters in training with 19 classes. The student, on ResNet-18 (12.1 M), is published nowhere: its
    numbers of channels are our assumption, a quarter of the teacher's as in mmsegmentation's pspnet_r18-d8.

    Args:
        backbone: "resnet18" (default), "resnet34", "resnet50", "resnet101" or "mobilenet_v2", at output stride 8 in the
            geometry of `mmseg_backbone_config`.
        backbone_config: Instead of a name, the configuration of any backbone `AutoBackbone` can build, or its dict
            with "model_type". The last of its feature maps enters the head, the one before it the auxiliary head.
        channels: Channels of the head's maps, 512, and 128 on ResNet-18 and -34.
        attention_channels: Channels of queries and keys, 256, and 64 on ResNet-18 and -34.
        group_size: Height and width of the groups of neighbours for the local attention, in pixels of the backbone's
            last map; the global one is among the pixels at the same place of each group. 8 and 8 by default.
        classifier_dropout: Probability, 0 to 1, with which channels are dropped before the classifiers.
        use_auxiliary_head: Whether the auxiliary head takes part in training.
        auxiliary_channels: Its channels, 256, and 64 on ResNet-18 and -34.
        auxiliary_loss_weight: Weight of its cross-entropy.
        num_channels: Channels of the images, 3 by default; with `backbone_config` those that it says.
        align_corners: How the logits are resized: False by default.
        semantic_loss_ignore_index: Label of the pixels that have no class.

    Raises:
        ValueError: If a value is out of range, a keyword is unknown, `num_labels` is below 2, or a backbone is spelt
            both by name and by `backbone_config` and the two differ.

    Example:
        >>> from hf_segkd import ISANetConfig
        >>> ISANetConfig(backbone="resnet18", num_labels=19).num_labels
        19
    """

    model_type = "segkd-isanet"

    channels: int | None = None
    attention_channels: int | None = None
    group_size: list[int] | tuple[int, ...] = (8, 8)

    def defaults(self) -> dict[str, Any]:
        """See the base class."""
        shallow = is_shallow(self.backbone)
        return {
            **super().defaults(),
            "channels": 128 if shallow else 512,
            "attention_channels": 64 if shallow else 256,
        }

    def check_ranges(self) -> None:
        """See the base class."""
        self.group_size = list(self.group_size)
        if len(self.group_size) != 2 or min(self.group_size) < 1:
            raise ValueError(f"group_size must be a positive height and width, got {self.group_size}.")
        super().check_ranges()
