"""`DEVICE_FORMATS`: the formats of runtimes for devices; `write` makes their files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from . import coreml, executorch, litert, ncnn, openvino
from .graph import DenseNetwork
from .int8 import Int8Network
from .runtimes import Network, require_extra

METADATA = "metadata.json"
ONNX = ("onnx", "onnxscript", "onnxruntime")
INT8_FORMATS = ("onnx", "litert", "executorch")


@dataclass(frozen=True)
class DeviceFormat:
    """A format beside ONNX and `torch.export`.

    Attributes:
        runtime: Name of the runtime in tables.
        file: Name of the file that the runtime is given.
        packages: What makes and runs it, as it is imported; the extra has the name of the format.
        save: Writes it, from network, graph, path and (channels, height, width).
        load: Runs it; None if it cannot be run here.
        dynamic: Whether a file may leave the size of images open.
        argmax: Whether a file may give classes.
    """

    runtime: str
    file: str
    packages: tuple[str, ...]
    save: Callable[..., None]
    load: Callable[[Path], Network] | None
    dynamic: bool = False
    argmax: bool = True


DEVICE_FORMATS = {
    "litert": DeviceFormat("LiteRT", "model.tflite", ("litert_torch", "ai_edge_litert"), litert.save, litert.load),
    "executorch": DeviceFormat("ExecuTorch", "model.pte", ("executorch",), executorch.save, executorch.load),
    "openvino": DeviceFormat("OpenVINO", "model.xml", ("openvino", *ONNX), openvino.save, openvino.load, dynamic=True),
    "ncnn": DeviceFormat("ncnn", "model.param", ("ncnn", "pnnx", *ONNX), ncnn.save, ncnn.load, argmax=False),
    "coreml": DeviceFormat("Core ML", "model.mlpackage", ("coremltools",), coreml.save, None),
}


def int8_file(file: str) -> str:
    """Name of a format's file in int8, beside that in fp32."""
    return "{}-int8{}".format(*os.path.splitext(file))


def check_format(name: str, dynamic: bool, argmax: bool) -> None:
    """Make sure that a format can be made as it is asked for, with what is installed.

    Raises:
        ImportError: If packages are missing; the message says how to install them.
        ValueError: If it takes images of one size only, or gives logits only.
    """
    made = DEVICE_FORMATS[name]
    if dynamic and not made.dynamic:
        raise ValueError(f"--format {name} makes files for one size of images; it does not go with --dynamic.")
    if argmax and not made.argmax:
        raise ValueError(f"--format {name} makes files that give logits; it does not go with --argmax.")
    require_extra(name, f"{made.runtime} files", made.packages)


def write(
    name: str,
    network: DenseNetwork | Int8Network,
    program: ExportedProgram,
    folder: Path,
    size: tuple[int, int, int],
    facts: dict[str, Any],
) -> Path:
    """Write a network in a format for devices, and `facts` beside it as metadata.json; returns the file.

    Args:
        name: One of `DEVICE_FORMATS`.
        network: What is exported; in int8 its file has a name of its own.
        program: Its graph, from `trace`.
        folder: A folder that has no such file.
        size: (channels, height, width) of an image.
        facts: What `describe` gives.

    Raises:
        ValueError: If the format's own converter fails, with what it says.
    """
    made = DEVICE_FORMATS[name]
    save = partial(made.save, facts=facts) if name == "coreml" else made.save
    path = folder / (int8_file(made.file) if isinstance(network, Int8Network) else made.file)
    try:
        save(network, program, path, size)
    except Exception as error:  # each converter raises kinds of its own
        raise ValueError(
            f"{made.runtime}'s converter does not take the network, so nothing was written. It says: "
            f"{type(error).__name__}: {str(error).strip()[-1000:]}"
        ) from error
    (folder / METADATA).write_text(json.dumps(facts, indent=2) + "\n")
    return path


def load(name: str, path: Path) -> Network:
    """A file in its format's own runtime.

    Raises:
        ValueError: If the runtime does not load it, with what it says.
    """
    made = DEVICE_FORMATS[name]
    try:
        return made.load(path)
    except Exception as error:  # each runtime raises kinds of its own
        raise ValueError(
            f"{made.runtime} does not load {path.name}, so it was not kept. It says: {type(error).__name__}: "
            f"{str(error).strip()[-1000:]}"
        ) from error
