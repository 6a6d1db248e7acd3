"""`javascript_size`: whether a published ONNX file runs in JavaScript, in browsers and in Node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Resampling

from hf_segkd.data.image_processors import fixed_size, num_bands

STATIC = Path(__file__).parents[1] / "app" / "static"


def resize_source() -> str:
    """The function `resized`, which shrinks images as Python does; the library transformers.js has none that does."""
    return (STATIC / "resize.js").read_text(encoding="utf-8").rstrip()


def javascript_size(processor: Any, exports: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """Height and width of images for an ONNX file that transformers.js runs, prepared by `resized`.

    Args:
        processor: Image processor that is published with the file.
        exports: "exports" of export.json, with the folder in each "file".

    Returns:
        None where there is no such file: it must give logits of RGB images of the one size that the image processor,
        a `SegformerImageProcessor`, resizes to by the bilinear filter. Others of the library cannot give a mask.
    """
    size = fixed_size(processor)
    if size is None or num_bands(processor) is not None or processor.resample != Resampling.BILINEAR:
        return None
    if processor.to_dict().get("image_processor_type") != "SegformerImageProcessor":
        return None
    for export in exports:
        whole = not (export["argmax"] or export["dynamic"])
        if export["file"] == "onnx/model.onnx" and whole and tuple(export.get("image_size") or ()) == size:
            return size
    return None
