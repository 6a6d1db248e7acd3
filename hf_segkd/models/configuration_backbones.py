"""Configurations of the backbones: every stride and every dilation is explicit, one per stage or block.

"Output stride 16" does not name one network: the references dilate different blocks. So a backbone knows no output
stride, only strides and dilations, and whoever wants a certain network spells its geometry (see
`backbone_geometry.py`).
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_base import SegKDConfig

# (expansion factor, channels at depth multiplier 1, blocks) of each stage: Sandler et al., "MobileNetV2: Inverted
# Residuals and Linear Bottlenecks", Table 2.
MOBILENET_V2_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


class SegKDBackboneConfig(BackboneConfigMixin, SegKDConfig):
    """A backbone's configuration; a subclass sets `stage_names` and leaves the choice among them to this one."""

    extra_keywords = ("out_features", "out_indices", "stage_names")

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("stage_names", None)  # a config.json has it, but it follows from the rest
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)


class SegKDResNetConfig(SegKDBackboneConfig):
    """Configuration of `SegKDResNetBackbone`; the defaults are torchvision's `resnet18`.

    Args:
        num_channels: Channels of the image.
        layer_type: "basic" (two 3x3 convolutions, ResNet-18 and -34) or "bottleneck" (1x1, 3x3, 1x1, deeper ones).
        depths: Number of blocks of each of the four stages.
        width: Channels of the stem; stage i has `width * 2**i` (basic) or four times as many (bottleneck).
        strides: Stride of the first block of each stage, 1 or 2. The stem divides the resolution by four already.
        dilations: For each stage the dilation of each block's 3x3 convolutions (both, in a basic block); None is 1
            everywhere.
        deep_stem: Three 3x3 convolutions instead of the 7x7 one, half of `width` channels in the first two: the
            "v1c" form of mmsegmentation and GluonCV.
        dilate_second_conv: Whether the dilation of a basic block holds for its second convolution too; False in
            mmsegmentation, which dilates only the first.
        out_features: Names among `stage_names` ("stem", "stage1" to "stage4") of the maps to return, by
            default the last.
        out_indices: The same by index.

    Raises:
        ValueError: If the lists do not fit each other, or a keyword is unknown.
    """

    model_type = "segkd-resnet"

    num_channels: int = 3
    layer_type: str = "basic"
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2)
    dilations: list[list[int]] | None = None
    deep_stem: bool = False
    dilate_second_conv: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.layer_type not in ("basic", "bottleneck"):
            raise ValueError(f"layer_type must be 'basic' or 'bottleneck', got {self.layer_type!r}.")
        if len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"depths must be four positive numbers of blocks, got {self.depths}.")
        self.depths = list(self.depths)
        self.strides = list(self.strides)
        self.dilations = complete_dilations(self.depths, self.strides, self.dilations)
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, 5))]
        super().__post_init__(**kwargs)


class SegKDMobileNetV2Config(SegKDBackboneConfig):
    """Configuration of `SegKDMobileNetV2Backbone`; the defaults are torchvision's `mobilenet_v2`.

    The last 1x1 convolution (to 1280 channels) belongs to the classifier of whole images and is not part of it.

    Args:
        num_channels: Channels of the image.
        depth_multiplier: Scales all channel counts, which are then rounded to multiples of 8 as in the paper's code.
        strides: Stride of the first block of each of the seven stages, 1 or 2. The stem halves the resolution before.
        dilations: For each stage the dilation of each block's depthwise convolution; None is 1 everywhere.
        pad_before_expansion: Pad a block's input with zeros instead of the depthwise convolution's, as the AttnFD
            code does: then the ring that the depthwise convolution sees around the map is the activation of a
            bias instead of zero. ImageNet weights were not trained that way, hence False by default.
        out_features: Names among `stage_names` ("stem", "stage1" to "stage7") of the maps to return, by
            default the last.
        out_indices: The same by index.

    Raises:
        ValueError: If the lists do not fit each other, or a keyword is unknown.
    """

    model_type = "segkd-mobilenet-v2"

    num_channels: int = 3
    depth_multiplier: float = 1.0
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    dilations: list[list[int]] | None = None
    pad_before_expansion: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.depth_multiplier <= 0:
            raise ValueError(f"depth_multiplier must be positive, got {self.depth_multiplier}.")
        self.strides = list(self.strides)
        depths = [blocks for _, _, blocks in MOBILENET_V2_STAGES]
        self.dilations = complete_dilations(depths, self.strides, self.dilations)
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(MOBILENET_V2_STAGES) + 1))]
        super().__post_init__(**kwargs)


class SegKDHRNetBackboneConfig(SegKDBackboneConfig):
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
        self.stage_names = ["stem", *(f"branch{i}" for i in range(1, 5))]
        super().__post_init__(**kwargs)


# Ours are found without registration, so that the files also work as remote code of a Hub repository.
OWN_BACKBONES = {c.model_type: c for c in (SegKDResNetConfig, SegKDMobileNetV2Config, SegKDHRNetBackboneConfig)}


def complete_dilations(depths: list[int], strides: list[int], dilations: list[list[int]] | None) -> list[list[int]]:
    """Checks strides and dilations against the number of blocks of each stage.

    Returns:
        The dilations as lists, all 1 when `dilations` is None.

    Raises:
        ValueError: If a list has a wrong length, or a value is not allowed.
    """
    if len(strides) != len(depths) or any(stride not in (1, 2) for stride in strides):
        raise ValueError(f"strides must be {len(depths)} numbers, each 1 or 2, got {strides}.")
    if dilations is None:
        return [[1] * depth for depth in depths]
    dilations = [list(stage) for stage in dilations]
    if [len(stage) for stage in dilations] != depths or min(min(stage) for stage in dilations) < 1:
        raise ValueError(
            f"dilations must hold one positive number per block, so lists of the lengths {depths}; got {dilations}."
        )
    return dilations


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
