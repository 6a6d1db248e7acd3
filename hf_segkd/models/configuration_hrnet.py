"""Configurations of HRNet and of its backbone; the defaults build the networks of mmsegmentation's FCN-HRNet."""

from __future__ import annotations

from typing import Any

from transformers.backbone_utils import BackboneConfigMixin

from .configuration_base import SegKDConfig

# Geometry by name: Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition" (TPAMI 2021),
# Table 1 and section 3; the small one is mmsegmentation's `fcn_hr18s` (HRNet-W18-small-v2 of the authors' code).
HRNETS = {
    "hrnet_w18_small": {"width": 18, "stem_blocks": 2, "num_modules": (1, 3, 2), "num_blocks": 2},
    "hrnet_w18": {"width": 18, "stem_blocks": 4, "num_modules": (1, 4, 3), "num_blocks": 4},
    "hrnet_w48": {"width": 48, "stem_blocks": 4, "num_modules": (1, 4, 3), "num_blocks": 4},
}


class SegKDHRNetBackboneConfig(BackboneConfigMixin, SegKDConfig):
    """Configuration of `SegKDHRNetBackbone`; the defaults are HRNet-W18-small.

    Args:
        num_channels: Channels of the image.
        width: Channels of the branch at stride 4; each lower resolution has twice as many.
        stem_blocks: Number of bottlenecks (of 256 channels) after the stem, the paper's first stage.
        num_modules: Number of modules that work on two, three and four resolutions, the paper's stages 2 to 4. Each
            ends in an exchange between all resolutions.
        num_blocks: Number of basic blocks on each branch of a module.
        out_features: Names among `stage_names` ("stem", "branch1" to "branch4", the last exchange's maps at strides
            4 to 32) of the maps to return, by default the last.
        out_indices: The same by index.

    Raises:
        ValueError: If a number is not positive, or a keyword is unknown.
    """

    model_type = "segkd-hrnet-backbone"
    extra_keywords = ("out_features", "out_indices", "stage_names")

    num_channels: int = 3
    width: int = 18
    stem_blocks: int = 2
    num_modules: list[int] | tuple[int, ...] = (1, 3, 2)
    num_blocks: int = 2

    def __post_init__(self, **kwargs: Any) -> None:
        self.num_modules = list(self.num_modules)
        if len(self.num_modules) != 3 or min(self.num_modules) < 1:
            raise ValueError(f"num_modules must be three positive numbers, got {self.num_modules}.")
        for name in ("width", "stem_blocks", "num_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        kwargs.pop("stage_names", None)  # a config.json has it, but it is always the same
        self.stage_names = ["stem", *(f"branch{i}" for i in range(1, 5))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


class HRNetConfig(SegKDConfig):
    """Configuration of `HRNetForSemanticSegmentation`, HRNetV2 with its fully convolutional head.

    Sources of the defaults: mmsegmentation's `fcn_hr18s`; FAKD (arXiv 2208.14143) distils it from `fcn_hr48`. Neither
    has an auxiliary head or dropout.

    Args:
        backbone: "hrnet_w18_small" (default), "hrnet_w18" or "hrnet_w48".
        backbone_config: Any other HRNet, a `SegKDHRNetBackboneConfig` or its dict.
        align_corners: How the branches are resized to stride 4, and the logits to the image. The exchanges between
            the branches always resize with False, as in every implementation.
        semantic_loss_ignore_index: Label of the pixels that have no class.

    Raises:
        ValueError: If a keyword or the name is unknown, `num_labels` is below 2, or the backbone is given both by name
            and by `backbone_config` and the two differ.
    """

    model_type = "segkd-hrnet"
    sub_configs = {"backbone_config": SegKDHRNetBackboneConfig}  # noqa: RUF012  read as a class attribute by transformers
    keys_to_ignore_at_inference = ["features"]  # noqa: RUF012  keeps Trainer from gathering them

    backbone: str | None = None
    backbone_config: dict | SegKDHRNetBackboneConfig | None = None
    align_corners: bool = False
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.backbone_config, dict):
            self.backbone_config = backbone_config_from_dict(self.backbone_config)
        name = self.backbone
        if name is None and self.backbone_config is None:
            name = "hrnet_w18_small"
        if name is not None:
            built = backbone_config_from_name(name)
            if self.backbone_config is not None and geometry(self.backbone_config) != geometry(built):
                raise ValueError(
                    f"backbone={name!r} and backbone_config describe different networks; give one of them."
                )
            self.__dict__["backbone"] = name  # past the guard of __setattr__
            self.backbone_config = self.backbone_config or built
        super().__post_init__(**kwargs)
        if self.num_labels < 2:
            raise ValueError(
                f"num_labels must be at least 2, got {self.num_labels}: the loss is a softmax cross-entropy, so "
                "a single foreground class needs a background class beside it."
            )

    def __setattr__(self, key: str, value: Any) -> None:
        built = isinstance(self.__dict__.get("backbone_config"), SegKDHRNetBackboneConfig)
        if built and key == "backbone" and value != self.__dict__.get(key):
            raise ValueError(
                "backbone is fixed once the configuration is built, since backbone_config already follows from it: "
                f"build a new HRNetConfig(backbone={value!r}, ...) and pass it as config=."
            )
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> HRNetConfig:
        """Builds the configuration from the contents of a config.json; unknown entries are left out, warned of."""
        backbone = config_dict.get("backbone_config")
        if isinstance(backbone, dict):
            config_dict = {**config_dict, "backbone_config": SegKDHRNetBackboneConfig.from_dict(backbone)}
        return super().from_dict(config_dict, **kwargs)


def backbone_config_from_name(backbone: str) -> SegKDHRNetBackboneConfig:
    """The named HRNet.

    Raises:
        ValueError: If the name is not known.
    """
    if backbone not in HRNETS:
        raise ValueError(
            f"backbone must be one of {', '.join(HRNETS)}, got {backbone!r}. Other HRNets go into backbone_config."
        )
    return SegKDHRNetBackboneConfig(**HRNETS[backbone])


def backbone_config_from_dict(values: dict[str, Any]) -> SegKDHRNetBackboneConfig:
    """The HRNet that a dict describes.

    Raises:
        ValueError: If its "model_type" is another backbone's.
    """
    model_type = values.get("model_type", SegKDHRNetBackboneConfig.model_type)
    if model_type != SegKDHRNetBackboneConfig.model_type:
        raise ValueError(
            f"backbone_config of HRNet must have the model_type {SegKDHRNetBackboneConfig.model_type!r}, got "
            f"{model_type!r}."
        )
    return SegKDHRNetBackboneConfig(**values)


def geometry(config: SegKDHRNetBackboneConfig) -> dict[str, Any]:
    """What of the backbone's configuration decides the network."""
    return {name: getattr(config, name) for name in SegKDHRNetBackboneConfig.__annotations__}
