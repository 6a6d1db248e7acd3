"""Configuration of DeepLabV3+; the defaults build the networks of the AttnFD papers."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from .backbone_geometry import BACKBONE_NAMES, mobilenet_v2_config, resnet_config
from .configuration_backbones import SegKDMobileNetV2Config, SegKDResNetConfig
from .configuration_base import SegKDConfig

# Ours are found without registration, so that the files also work as remote code of a Hub repository.
OWN_BACKBONES = {c.model_type: c for c in (SegKDResNetConfig, SegKDMobileNetV2Config)}
# Fields that only spell `backbone_config`, which is built from them once.
SHORTHAND = (
    "backbone",
    "output_stride",
    "multi_grid",
    "depth_multiplier",
    "pad_before_expansion",
    "late_dilation",
)


class DeepLabV3PlusConfig(SegKDConfig):
    """Configuration of `DeepLabV3PlusForSemanticSegmentation` (Chen et al., ECCV 2018).

    Sources of the defaults: the network of the AttnFD authors' code (Mansurian et al., arXiv 2403.05451), whose
    parameter counts the paper gives: 59.3 M (ResNet-101) and 16.6 M (ResNet-18) with 21 classes.

    Either name a backbone in the geometry of these networks (`backbone` and the five fields after it), or give
    any `backbone_config`.

    Args:
        backbone: "resnet18" (default), "resnet34", "resnet50", "resnet101" or "mobilenet_v2".
        output_stride: Image pixels per pixel of the backbone's last map, 16 (default) or 8.
        multi_grid: ResNets: factor of the dilation of each block of the last stage; by default 1, 2, 4 for
            ResNet-50 and -101, and 1 for ResNet-18 and -34.
        depth_multiplier: MobileNetV2: scales its channels; 1 by default.
        pad_before_expansion: MobileNetV2: pads where the AttnFD code does, see `SegKDMobileNetV2Config`. False by
            default.
        late_dilation: MobileNetV2: dilates the blocks that the AttnFD code dilates, see `mobilenet_v2_config`. False
            by default. The numbers of the AttnFD MobileNetV2 need both.
        backbone_config: Configuration of any backbone `AutoBackbone` can build, or its dict with "model_type". The
            first of its feature maps is the low-level one (stride 4 in the paper), the last enters the ASPP.
        atrous_rates: Dilations of the ASPP's three 3x3 convolutions, in pixels of the last map; by default 6, 12, 18,
            and 12, 24, 36 with `output_stride=8`.
        aspp_channels: Channels of each ASPP branch and of the encoder's output.
        low_level_channels: Channels the low-level map is reduced to.
        decoder_channels: Channels of the decoder's two 3x3 convolutions.
        aspp_dropout: Probability after the ASPP's projection, 0 to 1.
        decoder_dropout: Probability between the decoder's convolutions.
        classifier_dropout: Probability before the classifier.
        align_corners: How every map is resized, the logits included: True in the AttnFD code.
        semantic_loss_ignore_index: Label of the pixels that have no class.

    Raises:
        ValueError: If a value is out of range, a keyword is unknown, `num_labels` is below 2, or a backbone is spelt
            both by name and by `backbone_config` and the two differ.
    """

    model_type = "segkd-deeplabv3plus"
    sub_configs = {"backbone_config": PreTrainedConfig}  # noqa: RUF012  read as a class attribute by transformers
    keys_to_ignore_at_inference = ["features"]  # noqa: RUF012  keeps Trainer from gathering them

    backbone: str | None = None
    output_stride: int | None = None
    multi_grid: list[int] | tuple[int, ...] | None = None
    depth_multiplier: float | None = None
    pad_before_expansion: bool | None = None
    late_dilation: bool | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    atrous_rates: list[int] | tuple[int, ...] | None = None
    aspp_channels: int = 256
    low_level_channels: int = 48
    decoder_channels: int = 256
    aspp_dropout: float = 0.5
    decoder_dropout: float = 0.5
    classifier_dropout: float = 0.1
    align_corners: bool = True
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_from_dict(self.backbone_config)
        if self.multi_grid is not None:
            self.__dict__["multi_grid"] = list(self.multi_grid)  # as it comes back from a config.json
        self._resolve_shorthand()
        if self.atrous_rates is None:
            self.atrous_rates = (12, 24, 36) if self.output_stride == 8 else (6, 12, 18)
        self.atrous_rates = list(self.atrous_rates)
        if len(self.atrous_rates) != 3 or min(self.atrous_rates) < 1:
            raise ValueError(f"atrous_rates must be three positive dilations, got {self.atrous_rates}.")
        for name in ("aspp_channels", "low_level_channels", "decoder_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("aspp_dropout", "decoder_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a probability in [0, 1), got {getattr(self, name)}.")
        super().__post_init__(**kwargs)
        if self.num_labels < 2:
            raise ValueError(
                f"num_labels must be at least 2, got {self.num_labels}: the loss is a softmax cross-entropy, so "
                "a single foreground class needs a background class beside it."
            )

    def _resolve_shorthand(self) -> None:
        given = {name: getattr(self, name) for name in SHORTHAND if getattr(self, name) is not None}
        if self.backbone_config is not None and self.backbone is None:
            if given:
                raise ValueError(
                    f"{', '.join(given)} belong to a backbone given by name, but backbone_config is given: "
                    "set its own strides and dilations."
                )
            return
        name = given.setdefault("backbone", "resnet18")
        given.setdefault("output_stride", 16)
        built = backbone_config_from_name(**given)
        if self.backbone_config is not None and geometry(self.backbone_config) != geometry(built):
            raise ValueError(
                f"backbone={name!r} (with {given}) and backbone_config describe different networks; give one of them."
            )
        self.__dict__.update(backbone=name, output_stride=given["output_stride"])  # past the guard of __setattr__
        self.backbone_config = self.backbone_config or built

    def __setattr__(self, key: str, value: Any) -> None:
        built = isinstance(self.__dict__.get("backbone_config"), PreTrainedConfig)
        if built and key in SHORTHAND and value != self.__dict__.get(key):
            raise ValueError(
                f"{key} is fixed once the configuration is built, since backbone_config already follows from it: "
                f"build a new DeepLabV3PlusConfig({key}={value!r}, ...) and pass it as config=."
            )
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> DeepLabV3PlusConfig:
        """Builds the configuration from the contents of a config.json; unknown entries are left out, warned of."""
        backbone = config_dict.get("backbone_config")
        if isinstance(backbone, dict) and backbone.get("model_type") in OWN_BACKBONES:
            backbone = OWN_BACKBONES[backbone["model_type"]].from_dict(backbone)
            config_dict = {**config_dict, "backbone_config": backbone}
        return super().from_dict(config_dict, **kwargs)


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
        raise ValueError(f"output_stride must be 8 or 16, got {output_stride!r}.")
    if backbone == "mobilenet_v2":
        if multi_grid is not None:
            raise ValueError("multi_grid belongs to ResNets; mobilenet_v2 has none.")
        return mobilenet_v2_config(output_stride, **mobilenet)
    if mobilenet:
        raise ValueError(f"{', '.join(mobilenet)} belong to mobilenet_v2, but backbone is {backbone!r}.")
    return resnet_config(backbone, output_stride, multi_grid)


def backbone_config_from_dict(values: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of the backbone that "model_type" names, ours or one known to AutoConfig.

    Raises:
        ValueError: If there is no "model_type", or it is not known.
    """
    if "model_type" not in values:
        raise ValueError(
            f"backbone_config needs a 'model_type', one of {', '.join(OWN_BACKBONES)} or a type of backbone that "
            f"transformers knows; got the keys {sorted(values)}."
        )
    if values["model_type"] in OWN_BACKBONES:
        return OWN_BACKBONES[values["model_type"]](**values)
    # Not at module level: importing AutoConfig may import this very file, to register it there.
    from transformers import AutoConfig

    return AutoConfig.for_model(**values)


def geometry(config: PreTrainedConfig) -> dict[str, Any]:
    """What of a backbone's configuration decides the network: `model_type` and our fields."""
    own = OWN_BACKBONES.get(config.model_type)
    names = own.__annotations__ if own is not None else ()
    return {"model_type": config.model_type, **{name: getattr(config, name) for name in names}}
