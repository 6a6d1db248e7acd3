"""The backbones by name, in the geometry of the AttnFD papers' networks and of mmsegmentation's "d8" networks.

AttnFD (Mansurian et al., "Attention-guided Feature Distillation for Semantic Segmentation") takes its networks from
Overhaul distillation (Heo et al., ICCV 2019). Which blocks are dilated follows the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

from .configuration_backbones import MOBILENET_V2_STAGES, SegKDMobileNetV2Config, SegKDResNetConfig

# (block type, depths): He et al., "Deep Residual Learning for Image Recognition", Table 1.
RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}
BACKBONE_NAMES = (*RESNETS, "mobilenet_v2")


def resnet_config(name: str, output_stride: int = 16, multi_grid: Sequence[int] | None = None) -> SegKDResNetConfig:
    """A ResNet whose last stages keep the resolution and are dilated instead.

    Output stride 16: stage 4 has stride 1 and dilation 2 times the multi-grid. Output stride 8: stage 3 has stride 1
    and dilation 2, stage 4 stride 1 and dilation 4 times the multi-grid. A stage's first block is dilated like the
    others, as in the authors' code; torchvision gives it the dilation of the stage before, which is another network.

    Args:
        name: "resnet18", "resnet34", "resnet50" or "resnet101".
        output_stride: 8 or 16, image pixels per pixel of the last map.
        multi_grid: Factor of each block of the last stage. None: 1, 2, 4 with bottlenecks (ResNet-50 and -101), 1
            everywhere with basic blocks, as in the authors' code.

    Raises:
        ValueError: If `multi_grid` does not have one positive factor per block.
    """
    layer_type, depths = RESNETS[name]
    if multi_grid is None:
        multi_grid = (1, 2, 4) if layer_type == "bottleneck" else (1,) * depths[3]
    if len(multi_grid) != depths[3] or min(multi_grid) < 1:
        raise ValueError(
            f"multi_grid must hold one positive factor for each of the {depths[3]} blocks in {name}'s last stage, "
            f"got {tuple(multi_grid)}."
        )
    dilation3 = {16: 1, 8: 2}[output_stride]
    return SegKDResNetConfig(
        layer_type=layer_type,
        depths=depths,
        strides=(1, 2, 2 // dilation3, 1),
        dilations=[
            [1] * depths[0],
            [1] * depths[1],
            [dilation3] * depths[2],
            [2 * dilation3 * factor for factor in multi_grid],
        ],
        out_features=["stage1", "stage4"],
    )


def mobilenet_v2_config(
    output_stride: int = 16,
    depth_multiplier: float = 1.0,
    pad_before_expansion: bool = False,
    late_dilation: bool = False,
) -> SegKDMobileNetV2Config:
    """A MobileNetV2 whose last stages keep the resolution and are dilated instead.

    By default the dilation doubles right after the convolution whose stride is dropped: that convolution keeps the
    dilation before, every later one gets the doubled dilation. Then each layer sees, on every second pixel, exactly
    what the strided network sees, which is what weights trained on ImageNet expect.

    Args:
        output_stride: 8 or 16, image pixels per pixel of the last map.
        depth_multiplier: Scales the channel counts.
        pad_before_expansion: See `SegKDMobileNetV2Config`.
        late_dilation: The AttnFD code's rule: a whole stage whose stride is dropped keeps the dilation before, and
            only the next stage gets the doubled one (output stride 16: dilation 2 only in the last block).
    """
    strides, dilations = [], []
    reached, dilation = 2, 1  # the stem halves the resolution
    for (_, _, blocks), stride in zip(MOBILENET_V2_STAGES, SegKDMobileNetV2Config().strides, strict=True):
        keeps_resolution = reached * stride > output_stride
        first = dilation
        if keeps_resolution:
            dilation *= stride
        else:
            reached *= stride
        strides.append(1 if keeps_resolution else stride)
        dilations.append([first] * blocks if late_dilation else [first] + [dilation] * (blocks - 1))
    return SegKDMobileNetV2Config(
        depth_multiplier=depth_multiplier,
        strides=strides,
        dilations=dilations,
        pad_before_expansion=pad_before_expansion,
        out_features=["stage2", "stage7"],
    )


def mmseg_backbone_config(name: str) -> SegKDResNetConfig | SegKDMobileNetV2Config:
    """The backbone of mmsegmentation's "d8" networks: output stride 8, with its rules for dilations.

    ResNets are of the v1c form (deep stem). The first block of a dilated stage keeps the dilation before
    (`contract_dilation`), and basic blocks dilate only their first convolution. MobileNetV2 dilates the first block
    of a stage and no other. Besides the first and the last level, the one that the auxiliary head sees is returned.

    Args:
        name: "resnet18", "resnet34", "resnet50", "resnet101" or "mobilenet_v2".

    Raises:
        ValueError: If the name is not known.
    """
    if name == "mobilenet_v2":
        first = (1, 1, 1, 2, 2, 4, 4)
        blocks = [depth for _, _, depth in MOBILENET_V2_STAGES]
        return SegKDMobileNetV2Config(
            strides=(1, 2, 2, 1, 1, 1, 1),
            dilations=[[dilation] + [1] * (depth - 1) for dilation, depth in zip(first, blocks, strict=True)],
            out_features=["stage2", "stage5", "stage7"],
        )
    if name not in RESNETS:
        raise ValueError(
            f"backbone must be one of {', '.join(BACKBONE_NAMES)}, got {name!r}. Other backbones go into "
            "backbone_config."
        )
    layer_type, depths = RESNETS[name]
    return SegKDResNetConfig(
        layer_type=layer_type,
        depths=depths,
        strides=(1, 2, 1, 1),
        dilations=[
            [1] * depths[0],
            [1] * depths[1],
            [1] + [2] * (depths[2] - 1),
            [2] + [4] * (depths[3] - 1),
        ],
        deep_stem=True,
        dilate_second_conv=False,
        out_features=["stage1", "stage3", "stage4"],
    )
