"""Loads exported files as functions of a tensor, to compare and to time them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

# Images (b, 3, hh, ww) to logits (b, k, hh, ww) or classes (b, hh, ww).
Network = Callable[[Tensor], Tensor]


def require_extra(
    extra: str = "export", what: str = "ONNX files", packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
) -> None:
    """Make sure that the packages of an extra are installed.

    Args:
        extra: Name of the extra.
        what: What needs them.
        packages: Names that they are imported by.

    Raises:
        ImportError: If not; the message says how to install them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{what} need {', '.join(missing)}: pip install 'hf-segkd[{extra}]'")


def onnx_network(path: Path) -> Network:
    """An ONNX file in ONNX Runtime on the CPU, with as many threads as PyTorch uses.

    Raises:
        ImportError: If the packages of the extra `export` are missing.
    """
    require_extra()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return lambda pixel_values: torch.from_numpy(session.run(None, {image.name: pixel_values.numpy()})[0])


def program_network(path: Path) -> Network:
    """A `torch.export` file."""
    return torch.export.load(path).module()
