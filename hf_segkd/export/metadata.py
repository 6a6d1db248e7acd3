"""The facts that a user of an exported file needs: how to prepare images, and what the classes are."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel

from hf_segkd.data.image_processors import normalisation, num_bands
from hf_segkd.evaluation.reports import versions

from .run_onnx import prepare

# Packages that make exported files.
PACKAGES = ("hf-segkd", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")
DEVICE_PACKAGES = ("litert-torch", "ai-edge-litert", "executorch", "openvino", "ncnn", "pnnx", "coremltools", "torchao")


def with_size(processor: Any, size: tuple[int, int]) -> Any:
    """A copy of an image processor that resizes every image to (height, width)."""
    resizing = copy.deepcopy(processor)
    resizing.do_resize = True
    resizing.size = {"height": size[0], "width": size[1]}
    return resizing


def describe(model: PreTrainedModel, processor: Any, output_name: str) -> dict[str, Any]:
    """How to use the exported network.

    Returns:
        `input` and `output` (names), `size` (`{"height", "width"}` or `{"shortest_edge"}` that images are resized to,
        or None), `resample` (PIL's number of the filter), `rescale_factor`, `image_mean`, `image_std`, `id2label`,
        `versions`, `num_bands` if images are taken as they are stored, in so many bands, and `license` if the network's
        config has one.
    """
    facts = {
        "input": "pixel_values",
        "output": output_name,
        "size": dict(processor.size) if processor.do_resize else None,
        "resample": int(processor.resample),
        **normalisation(processor),
        "id2label": model.config.id2label,
        "versions": versions(PACKAGES),
    }
    if (bands := num_bands(processor)) is not None:
        facts["num_bands"] = bands
    licence = model.config.to_dict().get("license")
    return facts if licence is None else {**facts, "license": licence}


def describe_onnx(path: Path, facts: dict[str, Any]) -> None:
    """Write `facts` into the metadata of an ONNX file, each value as JSON."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})
    onnx.save(model, path)


def check_description(facts: dict[str, Any], processor: Any, images: Iterable[Image.Image]) -> None:
    """Make sure that resizing, rescaling and normalising as `facts` say is all that the image processor does.

    Raises:
        ValueError: If a pixel differs by more than rounding: by more than 3 of 255 levels.
    """
    known = facts["size"] is None or facts["size"].keys() in ({"height", "width"}, {"shortest_edge"})
    limit = 3 * facts["rescale_factor"] / min(facts["image_std"])
    for image in images:
        expected = processor(images=image, return_tensors="np")["pixel_values"]
        prepared = prepare(image, facts) if known else None
        if not known or prepared.shape != expected.shape or np.abs(prepared - expected).max() > limit:
            raise ValueError(
                f"{type(processor).__name__} does something else to images than resize them to {facts['size']}, "
                "rescale and normalise them (such as cropping, padding or swapping channels), which a user of the "
                "exported file could not know. Pass --image_size, or save the network with a plainer processor."
            )
