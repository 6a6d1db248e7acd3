"""Names of mmsegmentation's checkpoints (github.com/open-mmlab/mmsegmentation, 1.x) in the terms of our networks."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .configuration_backbones import MOBILENET_V2_STAGES
from .convert_mmseg_hrnet import convert_mmseg_hrnet_state_dict

# Their convolution and batch norm are `conv` and `bn`, ours `conv` and `norm`. Pattern of a prefix -> prefix here.
HEAD_PREFIXES = {
    r"decode_head\.conv_seg": "classifier",
    r"auxiliary_head\.convs\.0": "auxiliary_head.conv",
    r"auxiliary_head\.conv_seg": "auxiliary_head.classifier",
}
PSPNET_PREFIXES = {
    r"decode_head\.psp_modules\.(\d)\.1": r"head.branches.\1",
    r"decode_head\.bottleneck": "head.project",
}
DEEPLABV3PLUS_PREFIXES = {
    r"decode_head\.image_pool\.1": "aspp.image_branch",
    r"decode_head\.aspp_modules\.(\d)": r"aspp.branches.\1",
    r"decode_head\.aspp_modules\.(\d)\.(depthwise|pointwise)_conv": r"aspp.branches.\1.\2",
    r"decode_head\.bottleneck": "aspp.project",
    r"decode_head\.c1_bottleneck": "decoder.low_level",
    r"decode_head\.sep_bottleneck\.0\.(depthwise|pointwise)_conv": r"decoder.fuse.\1",
    r"decode_head\.sep_bottleneck\.1\.(depthwise|pointwise)_conv": r"decoder.refine.\1",
}
ISANET_PREFIXES = {
    r"decode_head\.in_conv": "head.reduce",
    r"decode_head\.(global|local)_relation\.(key|query)_project\.(\d)": r"head.\1_attention.\2.\3",
    r"decode_head\.(global|local)_relation\.value_project": r"head.\1_attention.value",
    r"decode_head\.(global|local)_relation\.output_project": r"head.\1_attention.output",
    r"decode_head\.out_conv": "head.project",
}
# A name that only one of the networks has.
HEADS = {
    "decode_head.psp_modules.": PSPNET_PREFIXES,
    "decode_head.sep_bottleneck.": DEEPLABV3PLUS_PREFIXES,
    "decode_head.global_relation.": ISANET_PREFIXES,
}
RESNET_LAYER = re.compile(r"backbone\.(conv1|bn1|stem|layer[1-4])\.")
MOBILENET_STEM = re.compile(r"backbone\.conv1\.(conv|bn)\.(\w+)")
MOBILENET_LAYER = re.compile(r"backbone\.layer(\d)\.(\d)\.conv\.(\d)\.(conv|bn)\.(\w+)")
ASPP_PROJECTION = "aspp.project.conv.weight"


def convert_mmseg_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of mmsegmentation's PSPNet, ISANet, separable DeepLabV3+ or FCN-HRNet to our networks'.

    The backbone of the first three is a ResNet, of the v1c form or not, or a MobileNetV2.

        checkpoint = torch.load("pspnet_r101-d8.pth", map_location="cpu", weights_only=True)
        model.load_state_dict(convert_mmseg_state_dict(checkpoint["state_dict"]))

    Args:
        state_dict: mmsegmentation's "state_dict".

    Returns:
        The same tensors under our names; of DeepLabV3+'s projection after the ASPP the input channels change their
        order, since mmsegmentation puts the image-level branch first and we put it last. Load them strictly, to see
        that none is missing.

    Raises:
        ValueError: If the head is none of these, or a name is not known.
    """
    if any(name.startswith("backbone.stage2.") for name in state_dict):  # no other backbone has that
        return convert_mmseg_hrnet_state_dict(state_dict)
    heads = [head for name, head in HEADS.items() if any(key.startswith(name) for key in state_dict)]
    if len(heads) != 1:
        raise ValueError(
            "The names are not those of mmsegmentation's PSPNet, ISANet or DeepLabV3+ with separable convolutions, nor "
            "those of its FCN-HRNet. "
            'Pass the dict of tensors itself: checkpoint["state_dict"], without a "module." prefix.'
        )
    prefixes = {**HEAD_PREFIXES, **heads[0]}
    converted = {_convert_name(name, prefixes): tensor for name, tensor in state_dict.items()}
    if ASPP_PROJECTION in converted:
        image_branch, *others = converted[ASPP_PROJECTION].chunk(5, dim=1)
        converted[ASPP_PROJECTION] = torch.cat([*others, image_branch], dim=1)
    return converted


def _convert_name(name: str, prefixes: Mapping[str, str]) -> str:
    if MOBILENET_STEM.fullmatch(name) or MOBILENET_LAYER.fullmatch(name):
        return _convert_mobilenet_name(name)
    if RESNET_LAYER.match(name):
        return name
    prefix, _, suffix = name.rpartition(".")
    layer, _, part = prefix.rpartition(".")
    for pattern, ours in prefixes.items():
        if re.fullmatch(pattern, prefix):  # a plain convolution
            return f"{re.sub(pattern, ours, prefix)}.{suffix}"
        if re.fullmatch(pattern, layer) and part in ("conv", "bn"):
            return f"{re.sub(pattern, ours, layer)}.{part.replace('bn', 'norm')}.{suffix}"
    raise ValueError(f"{name!r} is no name in mmsegmentation's checkpoint of this network.")


def _convert_mobilenet_name(name: str) -> str:
    stem = MOBILENET_STEM.fullmatch(name)
    if stem is not None:
        part, suffix = stem.groups()
        return f"backbone.features.0.{int(part == 'bn')}.{suffix}"
    stage, block, place, part, suffix = MOBILENET_LAYER.fullmatch(name).groups()
    stage, block, place = int(stage), int(block), int(place)
    index = 1 + sum(depth for _, _, depth in MOBILENET_V2_STAGES[: stage - 1]) + block
    projection = 1 if stage == 1 else 2  # the first block has no expansion before its depthwise convolution
    if place == projection:  # convolution and norm without an activation, which torchvision does not nest
        return f"backbone.features.{index}.conv.{place + int(part == 'bn')}.{suffix}"
    return f"backbone.features.{index}.conv.{place}.{int(part == 'bn')}.{suffix}"
