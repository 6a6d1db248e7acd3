"""Names of the AttnFD authors' checkpoints (github.com/AmirMansurian/AttnFD) in the terms of our networks."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .pretrained_backbones import read_state_dict

# Prefix in the authors' DeepLab -> prefix here, outside the backbone. Numbers are places in an nn.Sequential.
HEAD_PREFIXES = {
    "aspp.aspp1.atrous_conv": "aspp.branches.0.conv",
    "aspp.aspp1.bn": "aspp.branches.0.norm",
    "aspp.aspp2.atrous_conv": "aspp.branches.1.conv",
    "aspp.aspp2.bn": "aspp.branches.1.norm",
    "aspp.aspp3.atrous_conv": "aspp.branches.2.conv",
    "aspp.aspp3.bn": "aspp.branches.2.norm",
    "aspp.aspp4.atrous_conv": "aspp.branches.3.conv",
    "aspp.aspp4.bn": "aspp.branches.3.norm",
    "aspp.global_avg_pool.1": "aspp.image_branch.conv",
    "aspp.global_avg_pool.2": "aspp.image_branch.norm",
    "aspp.conv1": "aspp.project.conv",
    "aspp.bn1": "aspp.project.norm",
    "decoder.conv1": "decoder.low_level.conv",
    "decoder.bn1": "decoder.low_level.norm",
    "decoder.last_conv.0": "decoder.fuse.conv",
    "decoder.last_conv.1": "decoder.fuse.norm",
    "decoder.last_conv.4": "decoder.refine.conv",
    "decoder.last_conv.5": "decoder.refine.norm",
    "decoder.last_conv.8": "classifier",
}
# MobileNetV2: place of a layer in the authors' flat block -> place in torchvision's nested one. The first block has no
# expansion. The gaps are ReLU6 layers, which have no weights.
FIRST_BLOCK = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
OTHER_BLOCKS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}

# Left out. Attention modules (CBAM) take part only in the distillation loss, never in the network's output; the
# MobileNetV2 backbone lists its layers a second time, under the names of two slices of `features`.
LEFT_OUT = re.compile(r"(backbone|aspp|decoder)\.cbam\.|backbone\.(low|high)_level_features\.")
MOBILENET_STEM = re.compile(r"backbone\.features\.0\.[01]\.")
MOBILENET_LAYER = re.compile(r"backbone\.features\.(\d+)\.conv\.(\d+)\.(\w+)")
RESNET_LAYER = re.compile(r"backbone\.(conv1|bn1|layer[1-4])\.")


def read_checkpoint(path: str | Path) -> Mapping[str, Tensor]:
    """The "state_dict" in the file, or the one that it is, without running code from it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything but tensors, plain values and the logs of a training (such as NumPy's numbers
            and mmengine's message hub, of which nothing is made), or no dict of tensors.
    """
    return read_state_dict(Path(path))


def convert_attnfd_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of the AttnFD authors' DeepLab to those of `DeepLabV3PlusForSemanticSegmentation`.

    The MobileNetV2 of that code needs `pad_before_expansion=True, late_dilation=True` to give its numbers.

        model.load_state_dict(convert_attnfd_state_dict(read_checkpoint("checkpoint.pth.tar")))

    Args:
        state_dict: The authors' "state_dict". Its attention modules and the second names of the MobileNetV2's layers
            are left out.

    Returns:
        The same tensors under our names. Load them strictly, to see that none is missing.

    Raises:
        ValueError: If a name is none of that code's.
    """
    kept = {name: tensor for name, tensor in state_dict.items() if not LEFT_OUT.match(name)}
    return {_convert_name(name): tensor for name, tensor in kept.items()}


def _convert_name(name: str) -> str:
    prefix, _, suffix = name.rpartition(".")
    if prefix in HEAD_PREFIXES:
        return f"{HEAD_PREFIXES[prefix]}.{suffix}"
    if RESNET_LAYER.match(name) or MOBILENET_STEM.match(name):
        return name
    layer = MOBILENET_LAYER.fullmatch(name)
    if layer is not None:
        block, place, suffix = layer.groups()
        places = FIRST_BLOCK if block == "1" else OTHER_BLOCKS
        if place in places:
            return f"backbone.features.{block}.conv.{places[place]}.{suffix}"
    raise ValueError(
        f"{name!r} is no name in a checkpoint of the AttnFD code (DeepLab with a resnet or mobilenet backbone). Pass "
        'the dict of tensors itself: checkpoint["state_dict"], without a "module." prefix.'
    )
