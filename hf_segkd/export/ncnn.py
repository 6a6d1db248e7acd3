"""ncnn files (.param and .bin), made by pnnx from the ONNX graph."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from .graph import DenseNetwork, save_onnx
from .runtimes import Network


def save(network: DenseNetwork, program: ExportedProgram, path: Path, size: tuple[int, int, int]) -> None:
    """Write a traced network as `path` (.param) and its weights beside it (.bin), in fp32.

    Raises:
        RuntimeError: If pnnx writes none, with what it says.
    """
    import pnnx

    with tempfile.TemporaryDirectory() as scratch:
        save_onnx(program, Path(scratch, "model.onnx"), network.output_name)
        shape = ",".join(map(str, (1, *size)))
        # By itself it would halve the weights to fp16.
        command = [pnnx.EXEC_PATH, "model.onnx", "fp16=0", f"inputshape=[{shape}]"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        made = [Path(scratch, f"model.ncnn{suffix}") for suffix in (".param", ".bin")]
        if done.returncode != 0 or not all(file.is_file() for file in made):
            raise RuntimeError(f"pnnx wrote no files. {(done.stdout + done.stderr).strip()[-500:]}")
        for file in made:
            shutil.move(file, path.with_suffix(file.suffix))


def load(path: Path) -> Network:
    """An ncnn file on the CPU, computing in fp32, with as many threads as PyTorch uses."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise RuntimeError("ncnn does not load the file.")

    def network(pixel_values: Tensor) -> Tensor:
        outputs = []
        for image in pixel_values.numpy():
            extractor = net.create_extractor()
            extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image)))
            failed, output = extractor.extract("out0")
            if failed:
                raise RuntimeError(f"ncnn does not run the file, error {failed}.")
            outputs.append(np.array(output))
        return torch.from_numpy(np.stack(outputs))

    return network
