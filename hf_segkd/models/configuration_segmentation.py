"""The base of the segmentation networks' configurations: backbone, resizing, ignored label, auxiliary head."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from .backbone_geometry import mmseg_backbone_config
from .configuration_backbones import OWN_BACKBONES, backbone_config_from_dict, geometry
from .configuration_base import SegKDConfig, known_fields


class SegKDSegmentationConfig(SegKDConfig):
    """Base: either a backbone by name, or any `backbone_config`. The subclasses document the fields.

    Attributes:
        shorthand: Fields that only spell `backbone_config`, which is built from them once.
        decisive: Other fields that the values of fields left at None follow from.
    """

    shorthand = ("backbone",)
    decisive = ()
    extra_keywords = ("num_channels",)
    sub_configs = {"backbone_config": PreTrainedConfig}  # noqa: RUF012  read as a class attribute by transformers
    keys_to_ignore_at_inference = ["features"]  # noqa: RUF012  keeps Trainer from gathering them

    backbone: str | None = None
    backbone_config: dict | PreTrainedConfig | None = None
    align_corners: bool | None = None
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs: Any) -> None:
        num_channels = kwargs.pop("num_channels", None)
        if num_channels is not None and not (isinstance(num_channels, int) and num_channels >= 1):
            raise ValueError(f"num_channels must be the number of channels of images, from 1, got {num_channels!r}.")
        if isinstance(self.backbone_config, dict):
            given = {} if num_channels is None else {"num_channels": num_channels}
            self.backbone_config = self.backbone_from_dict({**given, **self.backbone_config})
        self._resolve_backbone(num_channels)
        for name, value in self.defaults().items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.check_ranges()
        super().__post_init__(**kwargs)
        if self.num_labels < 2:
            raise ValueError(
                f"num_labels must be at least 2, got {self.num_labels}: the loss is a softmax cross-entropy, so "
                "a single foreground class needs a background class beside it."
            )

    @property
    def num_channels(self) -> int:
        """Channels of the images, which are the backbone's."""
        return getattr(self.backbone_config, "num_channels", 3)

    def defaults(self) -> dict[str, Any]:
        """Values of the fields that were left at None, which depend on the backbone."""
        return {"align_corners": False}

    def backbone_shorthand(self) -> dict[str, Any]:
        """Values of `shorthand` that hold unless others are given."""
        return {"backbone": "resnet18"}

    def backbone_from_shorthand(self, backbone: str) -> PreTrainedConfig:
        """The backbone that the fields in `shorthand` spell."""
        return mmseg_backbone_config(backbone)

    def backbone_from_dict(self, values: dict[str, Any]) -> PreTrainedConfig:
        """The backbone that a `backbone_config` given as a dict describes."""
        return backbone_config_from_dict(values)

    def check_ranges(self) -> None:
        """Refuses numbers of channels and dropout probabilities that make no sense.

        Raises:
            ValueError: Naming the field.
        """
        for name in vars(self):
            value = getattr(self, name)
            if name.endswith("channels") and not value >= 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
            if name.endswith("dropout") and not 0 <= value < 1:
                raise ValueError(f"{name} must be a probability in [0, 1), got {value}.")

    def _resolve_backbone(self, num_channels: int | None) -> None:
        given = {name: getattr(self, name) for name in self.shorthand if getattr(self, name) is not None}
        if self.backbone_config is not None and self.backbone is None:
            if given:
                raise ValueError(
                    f"{', '.join(given)} belong to a backbone given by name, but backbone_config is given: "
                    "set its own strides and dilations."
                )
            self._check_channels(num_channels)
            return
        usual = self.backbone_shorthand()
        given = {**usual, **given}
        built = self.backbone_from_shorthand(**given)
        built.num_channels = num_channels or getattr(self.backbone_config, "num_channels", built.num_channels)
        if self.backbone_config is not None and geometry(self.backbone_config) != geometry(built):
            raise ValueError(
                f"backbone={given['backbone']!r} (with {given}) and backbone_config describe different networks; give "
                "one of them."
            )
        self.__dict__.update({name: given[name] for name in usual})  # past the guard of __setattr__
        self.backbone_config = self.backbone_config or built
        self._check_channels(num_channels)

    def _check_channels(self, num_channels: int | None) -> None:
        if num_channels not in (None, self.num_channels):
            raise ValueError(
                f"num_channels={num_channels} and backbone_config, which has {self.num_channels}, differ; give one."
            )

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "num_channels" and value == self.num_channels:
            return
        built = isinstance(self.__dict__.get("backbone_config"), PreTrainedConfig)
        # A first value, from __init__, may come after backbone_config.
        changes = key == "num_channels" or (key in self.__dict__ and value != self.__dict__[key])
        if built and key in (*self.shorthand, *self.decisive, "num_channels") and changes:
            raise ValueError(
                f"{key} is fixed once the configuration is built, since others of its fields already follow from it: "
                f"build a new {type(self).__name__}({key}={value!r}, ...) and pass it as config=."
            )
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> SegKDSegmentationConfig:
        """Builds the configuration from the contents of a config.json; unknown entries are left out, warned of.

        That of one of our backbones gives the network on this backbone, so that `from_pretrained` takes the folder of
        a backbone saved by itself, and starts the head anew.
        """
        if config_dict.get("model_type") in OWN_BACKBONES:
            given = [name for name in kwargs if name in known_fields(cls) and name != "dtype"]
            config_dict = {"backbone_config": config_dict, **{name: kwargs.pop(name) for name in given}}
        backbone = config_dict.get("backbone_config")
        if isinstance(backbone, dict) and backbone.get("model_type") in OWN_BACKBONES:
            backbone = OWN_BACKBONES[backbone["model_type"]].from_dict(backbone)
            config_dict = {**config_dict, "backbone_config": backbone}
        return super().from_dict(config_dict, **kwargs)


class SegKDAuxiliaryHeadConfig(SegKDSegmentationConfig):
    """Base for networks with dropout before the classifier and maybe an auxiliary head."""

    use_auxiliary_head: bool | None = None
    auxiliary_channels: int | None = None
    auxiliary_loss_weight: float | int = 0.4
    classifier_dropout: float | int = 0.1

    def defaults(self) -> dict[str, Any]:
        """See the base class."""
        return {
            **super().defaults(),
            "use_auxiliary_head": True,
            "auxiliary_channels": 64 if is_shallow(self.backbone) else 256,
        }


def is_shallow(backbone: str | None) -> bool:
    """Whether mmsegmentation gives heads on the named backbone a quarter of the usual channels."""
    return backbone in ("resnet18", "resnet34")
