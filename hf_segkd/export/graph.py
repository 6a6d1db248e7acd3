"""Functions that trace a network to a graph, and write the graph to an ONNX or `torch.export` file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from hf_segkd.networks import without_taps
from hf_segkd.networks.inference import logits_at

from .opsets import OPSET, PYTORCH_OPSET, lowered
from .runtimes import require_extra

INPUT = "pixel_values"
AXES = {0: "batch", 2: "height", 3: "width"}


class DenseNetwork(nn.Module):
    """A segmentation network as it is exported: in evaluation mode, fp32, one output of the input's size.

    Args:
        model: Any network whose `logits` are (b, k, h4, w4); smaller ones than the input are resized as the image
            processors' post-processing does it (bilinear, align_corners=False).
        argmax: Return the class of each pixel instead, as uint8, of more than 256 classes as int32. Of equal logits
            the lowest class wins, as in PyTorch.
    """

    def __init__(self, model: nn.Module, argmax: bool = False) -> None:
        super().__init__()
        self.model = model.float()
        self.argmax = argmax
        self.eval()

    @property
    def output_name(self) -> str:
        """Name of the output in files."""
        return "mask" if self.argmax else "logits"

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (b, k, hh, ww) fp32, or classes (b, hh, ww), of normalised images (b, 3, hh, ww)."""
        logits = self.model(pixel_values=pixel_values).logits
        if logits.shape[-2:] != pixel_values.shape[-2:]:
            logits = logits_at(logits, pixel_values.shape[-2:])
        return classes_of(logits) if self.argmax else logits


def classes_of(logits: Tensor) -> Tensor:
    """Class of each pixel, (b, hh, ww) uint8, of more than 256 classes int32, from logits (b, k, hh, ww)."""
    return logits.argmax(dim=1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int32)


def check_takes(network: DenseNetwork, image: Tensor) -> None:
    """Make sure that a network runs on images of this size, before much is done.

    Raises:
        ValueError: If it does not.
    """
    try:
        with torch.inference_mode():
            network(image)
    except (RuntimeError, ValueError) as error:
        height, width = image.shape[-2:]
        raise ValueError(
            f"{type(without_taps(network.model)).__name__} takes no images of {width} x {height}; choose another "
            f"--image_size. {error}"
        ) from error


def trace(network: DenseNetwork, size: tuple[int, int], dynamic: bool = False, channels: int = 3) -> ExportedProgram:
    """The network as a graph.

    Args:
        network: What to trace.
        size: (height, width) of the images; with `dynamic` any size the network can take will do.
        dynamic: Leave batch, height and width open. Otherwise the graph takes one image of `size`.
        channels: Channels of the images.

    Raises:
        ValueError: If they cannot be left open, because the network was written for one size (as many with position
            embeddings are).
    """
    # A batch of one would be taken for a constant.
    example = torch.zeros(2 if dynamic else 1, channels, *size)
    shapes = {INPUT: dict.fromkeys(AXES, Dim.DYNAMIC)} if dynamic else None
    try:
        program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    except torch._dynamo.exc.UserError as error:
        if not dynamic:
            raise
        raise ValueError(
            f"{type(network.model).__name__} is written so that PyTorch cannot leave the batch and the size of images "
            f"open. Export it for one size, without --dynamic. PyTorch says: {error}"
        ) from error
    # They would end up in the file: half a megabyte of zeros, and the folders of the machine that exported.
    program.example_inputs = None
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def save_onnx(
    program: ExportedProgram, path: Path, output_name: str, dynamic: bool = False, opset: int = OPSET
) -> None:
    """Write a traced network as one ONNX file, batch norm folded into the convolutions.

    Raises:
        ImportError: If the packages of the extra `export` are missing.
        ValueError: If an older opset lacks an operation of the network.
    """
    require_extra()
    import onnx

    torch.onnx.export(
        program,
        f=path,
        dynamo=True,
        opset_version=max(opset, PYTORCH_OPSET),
        external_data=False,
        input_names=[INPUT],
        output_names=[output_name],
        dynamic_shapes={INPUT: AXES} if dynamic else None,
        verbose=False,
    )
    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # each node's history in PyTorch, a tenth of the file of a small network
    onnx.save(model if opset >= PYTORCH_OPSET else lowered(model, opset), path)


def save_program(program: ExportedProgram, path: Path, facts: dict[str, Any]) -> None:
    """Write a traced network as a `torch.export` file (.pt2), with `facts` as its extra file `metadata.json`."""
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(facts)})
