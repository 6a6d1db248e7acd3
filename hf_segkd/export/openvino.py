"""OpenVINO files (.xml and .bin), made from the ONNX graph."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .graph import DenseNetwork, save_onnx
from .runtimes import Network

PRECISION = "INFERENCE_PRECISION_HINT"


def save(network: DenseNetwork, program: ExportedProgram, path: Path, size: tuple[int, int, int]) -> None:
    """Write a traced network as `path` (.xml) and its weights beside it (.bin), in fp32."""
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        onnx_file = Path(scratch, "model.onnx")
        dynamic = bool(program.range_constraints)
        save_onnx(program, onnx_file, network.output_name, dynamic)
        # By itself it would halve the weights to fp16.
        openvino.save_model(openvino.convert_model(onnx_file), path, compress_to_fp16=False)


def load(path: Path) -> Network:
    """An OpenVINO file on the CPU, computing in fp32, with as many threads as PyTorch uses."""
    return _network(path, **{PRECISION: "f32"})


def load_by_default(path: Path) -> Network:
    """An OpenVINO file on the CPU in the precision that OpenVINO chooses: bf16 on processors that have it."""
    return _network(path)


def default_precision(path: Path) -> str:
    """The precision that OpenVINO computes in by itself on this CPU, "f32", "bf16" or "f16"."""
    import openvino

    precision = openvino.Core().compile_model(path, "CPU").get_property(PRECISION)
    return {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}.get(precision.to_string(), precision.to_string())


def _network(path: Path, **properties: str) -> Network:
    import openvino

    properties["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    model = openvino.Core().compile_model(path, "CPU", properties)

    def network(pixel_values: Tensor) -> Tensor:
        return torch.from_numpy(model({0: pixel_values.numpy()})[0].copy())

    return network
