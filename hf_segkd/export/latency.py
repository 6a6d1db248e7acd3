"""`latency_report`: the time an image takes in each runtime, on the CPU, measured side by side in one run."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from hf_segkd.evaluation.reports import table
from hf_segkd.networks.profiling import cpu_name, measure_latencies

from .graph import DenseNetwork, save_onnx, trace
from .memory import peak_mb
from .runtimes import Network, onnx_network

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Variant:
    """A network in a runtime.

    Attributes:
        network: "student" or "teacher".
        runtime: "eager", "compiled", "ONNX Runtime", or that of a format for devices; "int8" behind it.
        call: The call that is timed.
        file_mb: Size of its file in 10^6 bytes; of its weights where PyTorch runs it.
        load: Loads its file, in another process where its memory is measured; None if that is not measured.
        path: The file that `load` takes.
    """

    network: str
    runtime: str
    call: Network
    file_mb: float
    load: Callable[[Path], Network] | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Missing:
    """A network in a runtime that is not timed, and why."""

    network: str
    runtime: str
    reason: str


def pytorch_variants(
    name: str, network: DenseNetwork, image: Tensor, compile_seconds: int = 120
) -> list[Variant | Missing]:
    """The network as it is and compiled.

    Compiling may fail, as it does without a C++ compiler, and take minutes on a busy machine: after `compile_seconds`
    it is given up, and with 0 left out.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()) / 1e6
    eager = Variant(name, "eager", network, size)
    if compile_seconds == 0:
        return [eager, Missing(name, "compiled", "--compile_seconds 0 leaves it out")]
    compiled = torch.compile(network, dynamic=False)
    try:
        with torch.inference_mode(), time_limit(compile_seconds):
            compiled(image)
    except Exception as error:  # the tracer and the compiler each raise their own kinds
        logger.warning(f"The compiled {name} is not timed, torch.compile failed: {_first_line(error)}")
        return [eager, Missing(name, "compiled", f"torch.compile failed: {_first_line(error)}")]
    return [eager, Variant(name, "compiled", compiled, size)]


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Ends what it surrounds after so many seconds; there is no limit on Windows and outside the main thread.

    Raises:
        TimeoutError: When the time is over.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def onnx_variant(name: str, runtime: str, path: Path) -> Variant:
    """An ONNX file."""
    return Variant(name, runtime, onnx_network(path), size_mb(path))


def traced_variants(name: str, network: DenseNetwork, image: Tensor) -> list[Variant | Missing]:
    """The network in ONNX Runtime; a warning where it can't be exported, as some that predict masks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        try:
            save_onnx(trace(network, tuple(image.shape[-2:]), channels=image.shape[1]), path, network.output_name)
            return [onnx_variant(name, "ONNX Runtime", path)]
        except Exception as error:  # PyTorch's tracer, its translator and ONNX Runtime each raise their own kinds
            logger.warning(f"The {name} is not timed in ONNX Runtime, its export failed: {_first_line(error)}")
            return [Missing(name, "ONNX Runtime", f"its export failed: {_first_line(error)}")]


def latency_report(variants: list[Variant | Missing], image: Tensor, runs: int) -> dict[str, Any]:
    """Time the variants in turns.

    Args:
        variants: What to time.
        image: One normalised image (1, 3, hh, ww).
        runs: Timed runs of each.

    Returns:
        `image_size`, `threads`, `device`, `runs`, and `rows` with `network`, `runtime`, `median_ms`, `p95_ms`,
        `file_mb`, `peak_mb` (or None); `missing` with `network`, `runtime` and `reason` of what is not timed.
    """
    missing = [variant for variant in variants if isinstance(variant, Missing)]
    variants = [variant for variant in variants if isinstance(variant, Variant)]
    latencies = measure_latencies([lambda call=variant.call: call(image) for variant in variants], runs)
    rows = [
        {
            "network": variant.network,
            "runtime": variant.runtime,
            **asdict(latency),
            "file_mb": variant.file_mb,
            "peak_mb": variant.load and peak_mb(variant.load, variant.path, image, variant.runtime),
        }
        for variant, latency in zip(variants, latencies, strict=True)
    ]
    return {
        "image_size": list(image.shape[-2:]),
        "threads": torch.get_num_threads(),
        "device": cpu_name(),
        "runs": runs,
        "rows": rows,
        "missing": [asdict(one) for one in missing],
    }


def latency_table(report: dict[str, Any]) -> str:
    """A text of how long an image takes, from a `latency_report`."""
    height, width = report["image_size"]
    numbers = ("median_ms", "p95_ms", "file_mb")
    rows = [
        [row["network"], row["runtime"], *(f"{row[key]:.2f}" for key in numbers), peak_cell(row)]
        for row in report["rows"]
    ]
    missing = [f"\nNot timed: {one['network']}, {one['runtime']}: {one['reason']}." for one in report["missing"]]
    return (
        f"{report['device']}, threads: {report['threads']}, one image of {width} x {height}, {report['runs']} runs in "
        f"turns\n\n{table(['network', 'runtime', 'median ms', '95th percentile ms', 'MB', 'peak MB'], rows)}"
        + "".join(missing)
    )


def peak_cell(row: dict[str, Any]) -> str:
    """The peak memory of a row of a `latency_report`; earlier versions did not measure it."""
    return "-" if row.get("peak_mb") is None else f"{row['peak_mb']:.0f}"


def size_mb(*paths: Path) -> float:
    """Size of files in 10^6 bytes."""
    return sum(path.stat().st_size for path in paths) / 1e6


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
