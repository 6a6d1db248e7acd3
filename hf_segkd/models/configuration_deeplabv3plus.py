"""Configuration of DeepLabV3+; the defaults build the networks of the AttnFD papers."""

from __future__ import annotations

from typing import Any

from .backbone_geometry import BACKBONE_NAMES, mmseg_backbone_config, mobilenet_v2_config, resnet_config
from .configuration_backbones import SegKDMobileNetV2Config, SegKDResNetConfig
from .configuration_segmentation import SegKDAuxiliaryHeadConfig, is_shallow

# What a layout means for the fields that are left at None.
LAYOUTS = {
    "attnfd": {
        "aspp_channels": 256,
        "decoder_channels": 256,
        "low_level_channels": 48,
        "aspp_dropout": 0.5,
        "decoder_dropout": 0.5,
        "use_auxiliary_head": False,
        "align_corners": True,
    },
    "mmsegmentation": {
        "aspp_channels": 512,
        "decoder_channels": 512,
        "low_level_channels": 48,
        "aspp_dropout": 0.0,
        "decoder_dropout": 0.0,
        "use_auxiliary_head": True,
        "align_corners": False,
    },
}
# In mmsegmentation's deeplabv3plus_r18-d8.
MMSEG_SHALLOW = {"aspp_channels": 128, "decoder_channels": 128, "low_level_channels": 12}


class DeepLabV3PlusConfig(SegKDAuxiliaryHeadConfig):
    """Configuration of `DeepLabV3PlusForSemanticSegmentation` (Chen et al., ECCV 2018).

    Sources of the defaults: the network of the AttnFD authors' code (Mansurian et al., arXiv 2403.05451), whose
    parameter counts the paper gives: 59.3 M (ResNet-101) and 16.6 M (ResNet-18) with 21 classes.

    `layout="mmsegmentation"` gives FAKD's networks (arXiv 2208.14143), with 19 classes and in training 62.6 M
    (ResNet-101) and 15.2 M (MobileNetV2). Either name a backbone in the geometry of these networks (`backbone` and the
    five fields after it), or give any `backbone_config`.

    Args:
        layout: "attnfd" (default) or "mmsegmentation", the form of FAKD's networks: separable convolutions in ASPP and
            decoder, a 3x3 projection after the ASPP, dropout of whole channels before the classifier, and a backbone
            given by name in the "d8" geometry (`mmseg_backbone_config`, ResNets with a deep stem).
        backbone: "resnet18" (default), "resnet34", "resnet50", "resnet101" or "mobilenet_v2".
        output_stride: Image pixels per pixel of the backbone's last map, 16 (default) or 8; always 8 with
            `layout="mmsegmentation"`.
        multi_grid: ResNets: factor of the dilation of each block of the last stage; by default 1, 2, 4 for
            ResNet-50 and -101, and 1 for ResNet-18 and -34.
        depth_multiplier: MobileNetV2: scales its channels; 1 by default.
        pad_before_expansion: MobileNetV2: pads where the AttnFD code does, see `SegKDMobileNetV2Config`. False by
            default.
        late_dilation: MobileNetV2: dilates the blocks that the AttnFD code dilates, see `mobilenet_v2_config`. False
            by default. The numbers of the AttnFD MobileNetV2 need both.
        backbone_config: Configuration of any backbone `AutoBackbone` can build, or its dict with "model_type". The
            first of its feature maps is the low-level one (stride 4 in the paper), the last enters the ASPP, the one
            before it the auxiliary head.
        atrous_rates: Dilations of the ASPP's three 3x3 convolutions, in pixels of the last map; by default 6, 12, 18,
            and 12, 24, 36 with `output_stride=8`.
        aspp_channels: Channels of each ASPP branch and of the encoder's output: 256 (AttnFD), 512 (mmsegmentation; 128
            on ResNet-18 and -34).
        low_level_channels: Channels the low-level map is reduced to: 48 (mmsegmentation's ResNet-18 and -34: 12).
        decoder_channels: Channels of the decoder's two 3x3 convolutions, by default as many as `aspp_channels` has.
        aspp_dropout: Probability after the ASPP's projection, 0 to 1: 0.5 (AttnFD), 0 (mmsegmentation).
        decoder_dropout: Probability between the decoder's convolutions, by default the same.
        classifier_dropout: Probability before the classifiers, 0.1 in both.
        use_auxiliary_head: Whether a second, small head on the map before the last takes part in training: False in
            AttnFD, True in mmsegmentation.
        auxiliary_channels: Its channels, 256 (64 on ResNet-18 and -34) in mmsegmentation.
        auxiliary_loss_weight: Weight of its cross-entropy, 0.4 in mmsegmentation.
        num_channels: Channels of the images, 3 by default; with `backbone_config` those that it says.
        align_corners: How every map is resized, the logits included: True in the AttnFD code, False in mmsegmentation.
        semantic_loss_ignore_index: Label of the pixels that have no class.

    Raises:
        ValueError: If a value is out of range, a keyword is unknown, `num_labels` is below 2, or a backbone is spelt
            both by name and by `backbone_config` and the two differ.

    Example:
        >>> from hf_segkd import DeepLabV3PlusConfig
        >>> config = DeepLabV3PlusConfig(backbone="mobilenet_v2", depth_multiplier=0.35, num_labels=19)
        >>> config.output_stride, config.atrous_rates
        (16, [6, 12, 18])
    """

    model_type = "segkd-deeplabv3plus"
    shorthand = (
        "backbone",
        "output_stride",
        "multi_grid",
        "depth_multiplier",
        "pad_before_expansion",
        "late_dilation",
    )
    decisive = ("layout",)

    layout: str = "attnfd"
    output_stride: int | None = None
    multi_grid: list[int] | tuple[int, ...] | None = None
    depth_multiplier: float | None = None
    pad_before_expansion: bool | None = None
    late_dilation: bool | None = None
    atrous_rates: list[int] | tuple[int, ...] | None = None
    aspp_channels: int | None = None
    low_level_channels: int | None = None
    decoder_channels: int | None = None
    aspp_dropout: float | None = None
    decoder_dropout: float | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be 'attnfd' or 'mmsegmentation', got {self.layout!r}.")
        if self.multi_grid is not None:
            self.__dict__["multi_grid"] = list(self.multi_grid)  # as it comes back from a config.json
        super().__post_init__(**kwargs)

    def defaults(self) -> dict[str, Any]:
        """See the base class."""
        values = {**super().defaults(), **LAYOUTS[self.layout]}
        if self.layout == "mmsegmentation" and is_shallow(self.backbone):
            values |= MMSEG_SHALLOW
        return {**values, "atrous_rates": [12, 24, 36] if self.output_stride == 8 else [6, 12, 18]}

    def check_ranges(self) -> None:
        """See the base class."""
        self.atrous_rates = list(self.atrous_rates)
        if len(self.atrous_rates) != 3 or min(self.atrous_rates) < 1:
            raise ValueError(f"atrous_rates must be three positive dilations, got {self.atrous_rates}.")
        super().check_ranges()

    def backbone_shorthand(self) -> dict[str, Any]:
        """See the base class."""
        return {"backbone": "resnet18", "output_stride": 8 if self.layout == "mmsegmentation" else 16}

    def backbone_from_shorthand(self, **given: Any) -> SegKDResNetConfig | SegKDMobileNetV2Config:
        """See the base class."""
        if self.layout == "attnfd":
            return backbone_config_from_name(**given)
        if given.pop("output_stride") != 8 or len(given) > 1:
            raise ValueError(
                "layout='mmsegmentation' has output stride 8 and dilations of its own, so it goes with none of "
                f"{', '.join(self.shorthand[1:])}; for other geometries give backbone_config."
            )
        return mmseg_backbone_config(given["backbone"])


def backbone_config_from_name(
    backbone: str, output_stride: int, multi_grid: list[int] | tuple[int, ...] | None = None, **mobilenet: Any
) -> SegKDResNetConfig | SegKDMobileNetV2Config:
    """The named backbone in the AttnFD papers' geometry.

    Raises:
        ValueError: If the name or the output stride is not known, or a field belongs to the other family.
    """
    if backbone not in BACKBONE_NAMES:
        raise ValueError(
            f"backbone must be one of {', '.join(BACKBONE_NAMES)}, got {backbone!r}. Other backbones go into "
            "backbone_config."
        )
    if output_stride not in (8, 16):
        raise ValueError(
            f"output_stride must be 8 or 16, got {output_stride!r}; another is spelt by the strides of backbone_config."
        )
    if backbone == "mobilenet_v2":
        if multi_grid is not None:
            raise ValueError("multi_grid belongs to ResNets; mobilenet_v2 has none.")
        return mobilenet_v2_config(output_stride, **mobilenet)
    if mobilenet:
        raise ValueError(f"{', '.join(mobilenet)} belong to mobilenet_v2, but backbone is {backbone!r}.")
    return resnet_config(backbone, output_stride, multi_grid)
