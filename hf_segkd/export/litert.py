"""LiteRT (TensorFlow Lite) files, by litert-torch; its inputs keep PyTorch's layout, (1, 3, hh, ww)."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from .graph import INPUT, DenseNetwork
from .runtimes import Network


class _Named(nn.Module):
    """Gives the output its name in the file."""

    def __init__(self, network: DenseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {self.network.output_name: self.network(pixel_values)}


def save(network: DenseNetwork, program: ExportedProgram, path: Path, size: tuple[int, int, int]) -> None:
    """Write a network as a .tflite file for one image of (channels, height, width)."""
    import litert_torch

    # It makes its own graph, with names for input and output. What it does is printed line by line.
    with contextlib.redirect_stdout(io.StringIO()):
        model = litert_torch.convert(_Named(network).eval(), sample_kwargs={INPUT: torch.zeros(1, *size)})
        model.export(str(path))


def load(path: Path) -> Network:
    """A .tflite file in LiteRT's interpreter on the CPU, with as many threads as PyTorch uses."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=torch.get_num_threads())
    run = interpreter.get_signature_runner()

    def network(pixel_values: Tensor) -> Tensor:
        (output,) = run(**{INPUT: pixel_values.numpy()}).values()
        return torch.from_numpy(output)

    return network
