"""ExecuTorch files, for its XNNPACK backend."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .graph import DenseNetwork
from .int8 import Int8Network
from .runtimes import Network


def save(network: DenseNetwork | Int8Network, program: ExportedProgram, path: Path, size: tuple[int, int, int]) -> None:
    """Write a traced network as a .pte file."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def load(path: Path) -> Network:
    """A .pte file in ExecuTorch's runtime, with as many threads as PyTorch uses."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(torch.get_num_threads())  # the runtime has no other way to say it
    program = Runtime.get().load_program(str(path))
    method = program.load_method("forward")

    def network(pixel_values: Tensor) -> Tensor:
        (output,) = method.execute([pixel_values.contiguous()])
        return output.clone()  # the next call writes to the same memory

    network.program = program  # the method lives in its memory
    return network
