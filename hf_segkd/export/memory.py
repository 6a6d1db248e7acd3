"""`peak_mb`: the memory that a runtime takes to load a file and run an image, in a process of its own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import logging

from .runtimes import Network

logger = logging.get_logger(__name__)

STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SECONDS = 300


def peak_mb(load: Callable[[Path], Network], path: Path, image: Tensor, what: str) -> float | None:
    """Most memory, in 10^6 bytes, beyond that of Python and PyTorch, while a runtime is imported, loads and runs.

    Args:
        load: Loads a file in its runtime: a function of a module, which the other process imports.
        path: The file.
        image: One normalised image (1, c, hh, ww); the other process runs an image of zeros of its size.
        what: Name in the warning.

    Returns:
        None, with a warning, where it cannot be measured; without one on other systems than Linux.
    """
    if sys.platform != "linux":
        return None
    program = [sys.executable, "-c", f"import sys; from {__name__} import main; main(*sys.argv[1:])"]
    numbers = map(str, (torch.get_num_threads(), *image.shape))
    try:
        done = subprocess.run(
            [*program, load.__module__, load.__name__, str(path), *numbers],
            capture_output=True,
            check=True,
            timeout=SECONDS,
        )
        return int(done.stdout.split()[-1]) / 1e6
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        logger.warning(f"The memory of {what} is not measured: {error} {said.decode(errors='replace')[-300:]}")
        return None


def main(module: str, function: str, path: str, threads: str, *shape: str) -> None:
    """In the process that is measured: load the file, run an image of zeros of that shape, print the bytes."""
    load: Callable[[Path], Network] = getattr(importlib.import_module(module), function)
    torch.set_num_threads(int(threads))
    pixels = torch.zeros(*map(int, shape))
    CLEAR_PEAK.write_text("5")
    before = _kilobytes("VmRSS")
    network = load(Path(path))
    with torch.inference_mode():
        for _ in range(3):
            network(pixels)
    print(1024 * (_kilobytes("VmHWM") - before))


def _kilobytes(name: str) -> int:
    """An entry of the process's status: VmRSS, its memory now, or VmHWM, the most since the peak was cleared."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])
