"""Names of mmsegmentation's FCN-HRNet checkpoints (`fcn_hr18s`, `fcn_hr18`, `fcn_hr48`) in the terms of our network."""

import re
from collections.abc import Mapping

from torch import Tensor

# Prefix in mmsegmentation -> prefix here, outside the backbone, whose names are the same.
HEAD_PREFIXES = {
    "decode_head.convs.0.conv": "decoder.conv",
    "decode_head.convs.0.bn": "decoder.norm",
    "decode_head.conv_seg": "classifier",
}
BACKBONE_LAYER = re.compile(r"backbone\.(conv[12]|bn[12]|layer1|transition[1-3]|stage[2-4])\.")


def convert_mmseg_hrnet_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of mmsegmentation's FCN-HRNet to those of `HRNetForSemanticSegmentation`.

        checkpoint = torch.load("fcn_hr48_....pth", map_location="cpu", weights_only=True)
        model.load_state_dict(convert_mmseg_hrnet_state_dict(checkpoint["state_dict"]))

    Args:
        state_dict: The "state_dict" of an mmsegmentation checkpoint.

    Returns:
        The same tensors under our names. Load them strictly, to see that none is missing.

    Raises:
        ValueError: If a name is none of that network's.
    """
    return {_convert_name(name): tensor for name, tensor in state_dict.items()}


def _convert_name(name: str) -> str:
    prefix, _, suffix = name.rpartition(".")
    if prefix in HEAD_PREFIXES:
        return f"{HEAD_PREFIXES[prefix]}.{suffix}"
    if BACKBONE_LAYER.match(name):
        return name
    raise ValueError(
        f"{name!r} is no name in a checkpoint of mmsegmentation's FCN-HRNet. Pass the dict of tensors itself: "
        'checkpoint["state_dict"], without a "module." prefix.'
    )
