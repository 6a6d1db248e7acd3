"""`peak_mb`: the memory that a runtime takes to load a file and run an image, in a process of its own."""

from __future__ import annotations

import pickle
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


def peak_mb(load: Callable[[], Network], image: Tensor, what: str) -> float | None:
    """Most memory, in 10^6 bytes, beyond that of Python and PyTorch, while a runtime is imported, loads and runs.

    Args:
        load: Loads a file in its runtime; it must be picklable, as a function of a module or a `partial` of one.
        image: One normalised image (1, c, hh, ww).
        what: Name in the warning.

    Returns:
        None, with a warning, where it cannot be measured; without one on other systems than Linux.
    """
    if sys.platform != "linux":
        return None
    given = pickle.dumps((load, image.numpy(), torch.get_num_threads()))
    program = [sys.executable, "-c", f"from {__name__} import main; main()"]
    try:
        done = subprocess.run(program, input=given, capture_output=True, check=True, timeout=SECONDS)
        return int(done.stdout.split()[-1]) / 1e6
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        logger.warning(f"The memory of {what} is not measured: {error} {said.decode(errors='replace')[-300:]}")
        return None


def main() -> None:
    """In the process that is measured: read what `peak_mb` sends, print the bytes."""
    load, image, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    pixels = torch.from_numpy(image)
    CLEAR_PEAK.write_text("5")
    before = _kilobytes("VmRSS")
    network = load()
    with torch.inference_mode():
        for _ in range(3):
            network(pixels)
    print(1024 * (_kilobytes("VmHWM") - before))


def _kilobytes(name: str) -> int:
    """An entry of the process's status: VmRSS, its memory now, or VmHWM, the most since the peak was cleared."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])
