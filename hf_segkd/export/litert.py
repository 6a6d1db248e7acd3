"""LiteRT (TensorFlow Lite) files, by litert-torch; its inputs keep PyTorch's layout, (1, 3, hh, ww)."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from .graph import INPUT, DenseNetwork
from .int8 import Int8Network
from .runtimes import Network


class _Named(nn.Module):
    """Gives the output its name in the file."""

    def __init__(self, network: DenseNetwork | Int8Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {self.network.output_name: self.network(pixel_values)}


def save(network: DenseNetwork | Int8Network, program: ExportedProgram, path: Path, size: tuple[int, int, int]) -> None:
    """Write a network as a .tflite file for one image of (channels, height, width).

    In int8 all operations are, also those that the graph leaves in fp32, and the input and logits: floats are
    (value - zero point) x scale, with both numbers in the file.
    """
    import litert_torch

    # It makes its own graph, with names for input and output. What it does is printed line by line.
    with contextlib.redirect_stdout(io.StringIO()):
        model = litert_torch.convert(
            _Named(network).eval(),
            sample_kwargs={INPUT: torch.zeros(1, *size)},
            quant_config=_as_in_the_graph() if isinstance(network, Int8Network) else None,
        )
        model.export(str(path))


def _as_in_the_graph() -> Any:
    """Makes the converter take the graph's integers; by itself it would compute in fp32 between them."""
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config()))


def load(path: Path) -> Network:
    """A .tflite file in LiteRT's interpreter on the CPU, with as many threads as PyTorch uses."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=torch.get_num_threads())
    run = interpreter.get_signature_runner()

    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()

    def network(pixel_values: Tensor) -> Tensor:
        (output,) = run(**{INPUT: _integers(pixel_values.numpy(), given)}).values()
        return torch.from_numpy(_floats(output, made))

    return network


def _integers(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Floats as a file takes them."""
    scale, zero_point = details["quantization"]
    if not scale:
        return values
    return np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(details["dtype"])


def _floats(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """What a file gives, classes as they are."""
    scale, zero_point = details["quantization"]
    return values if not scale else ((values.astype(np.float32) - zero_point) * scale).astype(np.float32)
