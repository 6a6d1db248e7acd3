"""Configuration of HRNet; the defaults build the networks of mmsegmentation's FCN-HRNet."""

from __future__ import annotations

from typing import Any

from .configuration_backbones import SegKDHRNetBackboneConfig
from .configuration_segmentation import SegKDSegmentationConfig

# Geometry by name: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition" (TPAMI 2021),
# Table 1 and section 3; the small one is mmsegmentation's `fcn_hr18s` (HRNet-W18-small-v2 of the authors' code).
HRNETS = {
    "hrnet_w18_small": {"width": 18, "stem_blocks": 2, "num_modules": (1, 3, 2), "num_blocks": 2},
    "hrnet_w18": {"width": 18, "stem_blocks": 4, "num_modules": (1, 4, 3), "num_blocks": 4},
    "hrnet_w48": {"width": 48, "stem_blocks": 4, "num_modules": (1, 4, 3), "num_blocks": 4},
}


class HRNetConfig(SegKDSegmentationConfig):
    """Configuration of `HRNetForSemanticSegmentation`, HRNetV2 with its fully convolutional head.

    Sources of the defaults: mmsegmentation's `fcn_hr18s`; FAKD (arXiv 2208.14143) distils it from `fcn_hr48`. Neither
    has an auxiliary head or dropout.

    Args:
        backbone: "hrnet_w18_small" (default), "hrnet_w18" or "hrnet_w48".
        backbone_config: Any other HRNet, a `SegKDHRNetBackboneConfig` or its dict.
        num_channels: Channels of the images, 3 by default; with `backbone_config` those that it says.
        align_corners: How the branches are resized to stride 4, and the logits to the image. The exchanges between
            the branches always resize with False, as in every implementation.
        semantic_loss_ignore_index: Label of the pixels that have no class.

    Raises:
        ValueError: If a keyword or the name is unknown, `num_labels` is below 2, or the backbone is given both by name
            and by `backbone_config` and the two differ.

    Example:
        >>> from hf_segkd import HRNetConfig
        >>> HRNetConfig(backbone="hrnet_w18_small", num_labels=19).backbone_config.model_type
        'segkd-hrnet-backbone'
    """

    model_type = "segkd-hrnet"
    sub_configs = {"backbone_config": SegKDHRNetBackboneConfig}  # noqa: RUF012  read as a class attribute by transformers

    def backbone_shorthand(self) -> dict[str, Any]:
        """See the base class."""
        return {"backbone": "hrnet_w18_small"}

    def backbone_from_shorthand(self, backbone: str) -> SegKDHRNetBackboneConfig:
        """The named HRNet.

        Raises:
            ValueError: If the name is not known.
        """
        if backbone not in HRNETS:
            raise ValueError(
                f"backbone must be one of {', '.join(HRNETS)}, got {backbone!r}. Other HRNets go into backbone_config."
            )
        return SegKDHRNetBackboneConfig(**HRNETS[backbone])

    def backbone_from_dict(self, values: dict[str, Any]) -> SegKDHRNetBackboneConfig:
        """See the base class; "model_type" may be left out."""
        return super().backbone_from_dict({"model_type": SegKDHRNetBackboneConfig.model_type, **values})

    def check_ranges(self) -> None:
        """See the base class.

        Raises:
            ValueError: If the backbone is not an HRNet.
        """
        model_type = self.backbone_config.model_type
        if model_type != SegKDHRNetBackboneConfig.model_type:
            raise ValueError(
                f"backbone_config of HRNet must have the model_type {SegKDHRNetBackboneConfig.model_type!r}, got "
                f"{model_type!r}."
            )
        super().check_ranges()
