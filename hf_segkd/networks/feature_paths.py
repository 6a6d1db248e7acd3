"""`default_taps`, `resolve`: the modules of transformers' segmentation models whose outputs are features."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class Tap(NamedTuple):
    """The module that a feature comes from.

    Args:
        path: Path of the module whose output it is.
        index: Which of the module's maps, where it gives several.
    """

    path: str
    index: int | None = None

    def __str__(self) -> str:
        return self.path if self.index is None else f"{self.path}:{self.index}"


def _stages(*paths: str) -> dict[str, str]:
    """The features of an encoder whose stages end without a ReLU, or show their maps only after it."""
    taps = {f"stage{number}{side}": path for number, path in enumerate(paths, start=1) for side in ("", "_pre")}
    return taps | {"low_level": paths[0], "low_level_pre": paths[0], "backbone": paths[-1], "backbone_post": paths[-1]}


_PYRAMID = {  # UperNet's head: pyramid pooling on the last stage, fusion of all stages before the classifier
    "decoder": "decode_head.fpn_bottleneck",
    "logits": "decode_head.classifier",
}
_BEIT = {
    **_stages("fpn:0", "fpn:1", "fpn:2", "fpn:3"),
    **_PYRAMID,
    "encoder": "decode_head.psp_bottleneck",
    "encoder_pre": "decode_head.psp_bottleneck.normalization",
    "decoder_pre": "decode_head.fpn_bottleneck.normalization",
}
_MASKS = {
    **_stages(*(f"model.pixel_level_module.encoder:{index}" for index in range(4))),
    "decoder": "model.pixel_level_module.decoder.mask_projection",
}


def _deeplab(stages: dict[str, str], projection: str) -> dict[str, str]:
    return stages | {"decoder": projection, "decoder_pre": f"{projection}.normalization"}


# Model type -> features, by the names that the losses ask for (docs/networks.md). `decoder` is the map that enters the
# classifier, before its dropout; `encoder` is the pyramid pooling of the last stage. Where a `_pre` and the feature
# itself are one map, there is no ReLU between them. Features that a model lacks (its backbone may be any) are left out.
DEFAULT_TAPS: dict[str, dict[str, str]] = {
    "segformer": {
        **_stages(*(f"segformer.stages.{index}" for index in range(4))),
        "decoder": "decode_head.activation",
        "decoder_pre": "decode_head.batch_norm",
    },
    "upernet": {
        **_stages("backbone:0", "backbone:1", "backbone:2", "backbone:3"),
        **_PYRAMID,
        "encoder": "decode_head.bottleneck",
        "encoder_pre": "decode_head.bottleneck.batch_norm",
        "decoder_pre": "decode_head.fpn_bottleneck.batch_norm",
    },
    "beit": _BEIT,
    "data2vec-vision": _BEIT,
    "dpt": {
        **_stages(*(f"neck.reassemble_stage:{index}" for index in range(4))),
        "decoder": "head.head.2",
        "decoder_pre": "head.head.1",
        "logits": "head.head.4",
    },
    "mobilenet_v2": _deeplab(
        _stages(*(f"mobilenet_v2.layer.{index}" for index in (1, 4, 11, 15))), "segmentation_head.conv_projection"
    ),
    "mobilevit": _deeplab(
        _stages(*(f"mobilevit.encoder.layer.{index}" for index in (1, 2, 3, 4))), "segmentation_head.aspp.project"
    ),
    "mobilevitv2": _deeplab(
        _stages(*(f"mobilevitv2.encoder.layer.{index}" for index in (1, 2, 3, 4))), "segmentation_head.aspp.project"
    ),
    "maskformer": _MASKS,
    "mask2former": _MASKS,
    "oneformer": _MASKS,
    "eomt": {"decoder": "upscale_block"},
}


def resolve(model: nn.Module, tap: str, value: str) -> Tap:
    """The module that a user names.

    Args:
        model: The model.
        tap: Name of the feature, for the messages.
        value: A module path, or a regular expression that matches exactly one path in full; `:N` behind it takes the
            map number N of a module that gives several.

    Raises:
        ValueError: If no module or several have such a path.
    """
    paths = [path for path, _ in model.named_modules() if path]
    pattern, index = value, None
    if numbered := re.fullmatch(r"(.+):(\d+)", value):
        pattern, index = numbered[1], int(numbered[2])
    if pattern in paths:
        return Tap(pattern, index)
    try:
        matches = [path for path in paths if re.fullmatch(pattern, path)]
    except re.error as error:
        raise ValueError(
            f"The tap {tap!r} is to be the output of {value!r}, which is neither a module's path nor a regular "
            f"expression: {error}."
        ) from error
    if len(matches) == 1:
        return Tap(matches[0], index)
    if matches:
        shown = f"{matches[:8]}{' and more' if len(matches) > 8 else ''}"
        raise ValueError(
            f"The tap {tap!r} is to be the output of one module, but {value!r} matches {len(matches)} of "
            f"{type(model).__name__}: {shown}. Name one of them."
        )
    near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.4) or paths[:3]
    raise ValueError(
        f"The tap {tap!r} is to be the output of {value!r}, but {type(model).__name__} has no such module. The "
        f"nearest are {near}; `hf-segkd inspect_model` lists all that give maps."
    )


def default_taps(model: nn.Module) -> dict[str, Tap]:
    """The features of this type of model, those whose modules it has."""
    paths = {path for path, _ in model.named_modules()}
    values = DEFAULT_TAPS.get(model.config.model_type, {})
    return {tap: resolve(model, tap, value) for tap, value in values.items() if value.split(":")[0] in paths}


class Output(NamedTuple):
    """What a module returned.

    Args:
        maps: All (b, c, h, w) maps in it, in order.
        versions: How often each had been written into by then.
        described: A short description of the whole output.
    """

    maps: list[Tensor]
    versions: list[int]
    described: str

    def overwritten(self) -> bool:
        """Whether a later module wrote into one of the maps."""
        return [version_of(found) for found in self.maps] != self.versions


def problem(tap: Tap, output: Output | None) -> str | None:
    """Why a module's output is no feature; None where it is one."""
    if output is None:
        return "this module does not run."
    if not output.maps:
        return (
            f"a tap needs a (b, c, h, w) map, and it gives {output.described}. Name a module that gives a map, such as "
            "a convolution or a norm behind one."
        )
    if tap.index is None and len(output.maps) > 1:
        return f"it gives {len(output.maps)} maps. Name one: {tap.path}:0 to {tap.path}:{len(output.maps) - 1}."
    if (tap.index or 0) >= len(output.maps):
        return f"it gives {len(output.maps)} maps, numbered from 0."
    return None


@contextlib.contextmanager
def recorded(model: nn.Module, paths: Iterable[str], copied: Container[str] = ()) -> Iterator[dict[str, Output]]:
    """Inside, the outputs of the modules at these paths are put into the dict; the last output where one runs twice.

    Args:
        model: The model.
        paths: Paths of modules.
        copied: Paths whose maps are copied, because later modules write into them.
    """
    outputs: dict[str, Output] = {}

    def record(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            maps = [found.clone() if path in copied else found for found in maps_of(output)]
            outputs[path] = Output(maps, [version_of(found) for found in maps], described(output))

        return hook

    with contextlib.ExitStack() as stack:
        for path in dict.fromkeys(paths):
            stack.callback(model.get_submodule(path).register_forward_hook(record(path)).remove)
        yield outputs


def maps_of(output: Any) -> list[Tensor]:
    """All (b, c, h, w) maps in what a module returned, in order."""
    if isinstance(output, Tensor):
        return [output] if output.ndim == 4 else []
    if isinstance(output, Mapping):  # as transformers' ModelOutput is
        output = list(output.values())
    return [found for part in output for found in maps_of(part)] if isinstance(output, list | tuple) else []


def described(output: Any) -> str:
    """Describe a tensor by its shape, anything else by its type."""
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written into; 0 in inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version
