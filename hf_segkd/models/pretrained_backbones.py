"""ImageNet weights for our backbones, from torchvision or from a file. Never called while a model is built."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from .backbone_geometry import RESNETS
from .configuration_backbones import SegKDHRNetBackboneConfig, SegKDMobileNetV2Config, SegKDResNetConfig
from .inert_pickles import inert_objects

logger = logging.get_logger(__name__)

# Layers of the classification networks that a segmentation backbone has no use for.
CLASSIFIER_PREFIXES = {
    SegKDResNetConfig.model_type: ("fc.",),
    SegKDMobileNetV2Config.model_type: ("features.18.", "classifier."),
    SegKDHRNetBackboneConfig.model_type: ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier."),
}
# After MobileNetV2's last block: nothing, the 1280-channel convolution and its norm, or the classifier as well.
SURPLUS_TENSORS = (0, 5, 7)
# A deep stem's names in timm (`resnet101c.gluon_in1k`) -> ours, which are mmsegmentation's.
TIMM_DEEP_STEM = {"conv1.": "stem.", "bn1.": "stem.7."}
BATCH_COUNTER = "num_batches_tracked"
# Under which a file may hold the state dict: mmsegmentation's and most training scripts' name, and timm's.
WRAPPERS = ("state_dict", "model")
# With which the files of mmclassification, mmsegmentation and `save_pretrained` begin the names of the backbone's.
BACKBONE_PREFIX = "backbone."


def load_pretrained_backbone(model: PreTrainedModel, weights: str | Path) -> list[str]:
    """Fills the backbone of `model` with weights of torchvision's network of the same shape.

    Files name their tensors like torchvision's `resnet*` or `mobilenet_v2`, or like the HRNet authors' (as timm does;
    torchvision has no HRNet, and W18-small is what they call `hrnet_w18_small_v2`). A deep stem, which torchvision's
    ResNets lack too, is named like timm's (`resnet101c.gluon_in1k`) or mmsegmentation's (`stem.N`). A MobileNetV2 file
    with other names is accepted if its tensors come in torchvision's order with the same last names ("weight",
    "running_mean", ...) and shapes, as in files of tonylins' layout (`features.N.conv.K`) or timm's; a .safetensors
    file must use torchvision's names, since that format sorts them. Of a file with names below "backbone." (of a whole
    network in mmsegmentation's form or ours) those are taken and no others. Nothing else is guessed: the weights fit
    completely, or nothing is loaded.

    Args:
        model: A segmentation model with one of our backbones, or the backbone itself.
        weights: A torchvision name such as "IMAGENET1K_V1" or "ResNet18_Weights.IMAGENET1K_V1" (or that enum member),
            downloaded by torchvision; or the path of a .pt, .pth or .safetensors file holding a state dict, in the
            first two maybe as "state_dict" or "model" among other things.

    Returns:
        Names of the tensors left out: the classifier's (for MobileNetV2 the 1280-channel convolution's too) or heads'.

    Raises:
        ValueError: If the backbone is not ours, the name is unknown, or a tensor is missing, left over or has
            another shape.
    """
    backbone = model.base_model
    if backbone.config.model_type not in CLASSIFIER_PREFIXES:
        raise ValueError(
            f"ImageNet weights can be loaded into {', '.join(CLASSIFIER_PREFIXES)}, but the backbone is "
            f"{backbone.config.model_type!r}; load it with its own from_pretrained."
        )
    if Path(str(weights)).suffix in (".pt", ".pth", ".safetensors"):
        state_dict = read_state_dict(Path(weights))
    else:
        state_dict = torchvision_state_dict(str(weights), torchvision_name(backbone.config))
    heads = []
    if any(name.startswith(BACKBONE_PREFIX) for name in state_dict):
        heads = [name for name in state_dict if not name.startswith(BACKBONE_PREFIX)]
        state_dict = {
            name.removeprefix(BACKBONE_PREFIX): tensor for name, tensor in state_dict.items() if name not in heads
        }
    prefixes = CLASSIFIER_PREFIXES[backbone.config.model_type]
    left_out = [name for name in state_dict if name.startswith(prefixes)]
    kept = {name: tensor for name, tensor in state_dict.items() if name not in left_out}
    expected = backbone.state_dict()
    if backbone.config.model_type == SegKDMobileNetV2Config.model_type and not kept.keys() <= expected.keys():
        kept, surplus = rename_by_order(state_dict, expected)
        left_out = surplus
    if "conv1.0.weight" in kept and "stem.0.weight" in expected:
        kept = {rename_deep_stem(name): tensor for name, tensor in kept.items()}
    check_fit(kept, expected, weights)
    backbone.load_state_dict(kept)
    left_out += heads
    logger.info(f"Backbone initialised from {weights}; left out: {', '.join(left_out) or 'nothing'}.")
    return left_out


def rename_deep_stem(name: str) -> str:
    """Our name of a tensor that a timm ResNet with a deep stem calls `name`."""
    for theirs, ours in TIMM_DEEP_STEM.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .pt, .pth or .safetensors file, without running code from it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no dict of tensors, bare or under one of `WRAPPERS`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = read_pickle(path)
    found = content
    if isinstance(content, Mapping):
        found = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        what = f"a dict of {', '.join(map(str, content))}" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"{path} must hold a state dict (name -> tensor), bare or as {' or '.join(map(repr, WRAPPERS))}, but it "
            f"holds {what}."
        )
    return dict(found)


def read_pickle(path: Path) -> object:
    """What a file of `torch.save` holds, on the CPU, without running code from it.

    Logs of a training in it, such as mmengine's message hub or numbers of NumPy, come as `Inert` objects.

    Raises:
        ValueError: If it holds anything but tensors, plain values and these, or is no such file.
    """
    try:
        with inert_objects(path):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        lines = str(error).splitlines() or ["it ends too early."]
        reason = next((line for line in lines if "GLOBAL" in line), lines[0]).split(" Please use")[0]
        raise ValueError(
            f"{path} is no checkpoint that can be read without running code from it: {reason.strip()} If you trust "
            "the file, read it in Python with torch.load(..., weights_only=False), and save its state dict alone."
        ) from error


def torchvision_name(config: SegKDResNetConfig | SegKDMobileNetV2Config | SegKDHRNetBackboneConfig) -> str:
    """The torchvision network whose weights have the backbone's shapes.

    Raises:
        ValueError: If torchvision has none.
    """
    if config.num_channels != 3:
        raise ValueError(
            f"torchvision's weights are for red, green and blue, and this backbone takes {config.num_channels} "
            "channels: which of them these are, and what the others should begin with, is not known. Train it from "
            "nothing, or give the path of a file whose first convolution has that many channels."
        )
    if config.model_type == SegKDMobileNetV2Config.model_type and config.depth_multiplier == 1:
        return "mobilenet_v2"
    if config.model_type == SegKDResNetConfig.model_type and config.width == 64 and not config.deep_stem:
        for name, (layer_type, depths) in RESNETS.items():
            if (layer_type, list(depths)) == (config.layer_type, config.depths):
                return name
    raise ValueError(
        f"torchvision has no weights for this backbone (it has {', '.join(RESNETS)} with a 7x7 stem and mobilenet_v2, "
        "at their original widths); give the path of a file with weights for it."
    )


def torchvision_state_dict(weights: str, architecture: str) -> dict[str, Tensor]:
    """Downloads torchvision's weights (or takes them from its cache), checking their hash.

    Raises:
        ValueError: If `weights` does not name weights of `architecture`.
    """
    from torchvision.models import get_model_weights

    available = get_model_weights(architecture)
    family, _, member = weights.rpartition(".")
    if family not in ("", available.__name__) or member not in available.__members__:
        names = ", ".join(f"{available.__name__}.{name}" for name in available.__members__)
        raise ValueError(
            f"weights={weights!r} is neither the path of a .pt, .pth or .safetensors file nor one of torchvision's "
            f"weights for {architecture}: {names}."
        )
    return available[member].get_state_dict(progress=False, check_hash=True, weights_only=True)


def rename_by_order(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Gives the first tensors of `given` the names of `expected`, one after the other.

    Batch counters are left out on both sides, since old files have none.

    Returns:
        The renamed tensors, and the names of those that come after the last expected one.

    Raises:
        ValueError: If last name or shape of a pair differ, or the number of tensors does not fit.
    """
    sources = [name for name in given if not name.endswith(BATCH_COUNTER)]
    targets = [name for name in expected if not name.endswith(BATCH_COUNTER)]
    if len(sources) - len(targets) not in SURPLUS_TENSORS:
        raise ValueError(
            f"The file's names are not torchvision's, and it has {len(sources)} tensors (batch counters not counted) "
            f"where the backbone has {len(targets)}, with up to {SURPLUS_TENSORS[-1]} of the classifier."
        )
    for source, target in zip(sources, targets, strict=False):
        same_kind = source.rpartition(".")[2] == target.rpartition(".")[2]
        if not same_kind or given[source].shape != expected[target].shape:
            raise ValueError(
                f"The file's names are not torchvision's, and in order they do not fit either: {source!r} "
                f"{tuple(given[source].shape)} would become {target!r} {tuple(expected[target].shape)}."
            )
    renamed = {target: given[source] for source, target in zip(sources, targets, strict=False)}
    return renamed, sources[len(targets) :]


def check_fit(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], weights: str | Path) -> None:
    """Raises a ValueError naming what is missing, left over or of another shape (batch counters may be missing)."""
    missing = [name for name in expected if name not in given and not name.endswith(BATCH_COUNTER)]
    unexpected = [name for name in given if name not in expected]
    misshapen = [name for name in given if name in expected and given[name].shape != expected[name].shape]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        if names:
            raise ValueError(
                f"{weights} does not fit the backbone: {len(names)} tensors are {problem}, the first ones "
                f"{', '.join(names[:3])}."
            )
