"""`latency_report`: the time an image takes in each runtime, on the CPU, measured side by side in one run."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from hf_segkd.evaluation.reports import table
from hf_segkd.networks.profiling import cpu_name, measure_latencies

from .graph import DenseNetwork, save_onnx, trace
from .runtimes import Network, onnx_network

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Variant:
    """A network in a runtime.

    Attributes:
        network: "student" or "teacher".
        runtime: "eager", "compiled", "ONNX Runtime" or "ONNX Runtime int8".
        call: The call that is timed.
        file_mb: Size of its file in 10^6 bytes; of its weights where PyTorch runs it.
    """

    network: str
    runtime: str
    call: Network
    file_mb: float


def pytorch_variants(name: str, network: DenseNetwork, image: Tensor) -> list[Variant]:
    """The network as it is and compiled; a warning instead where that fails, as it does without a C++ compiler."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()) / 1e6
    eager = Variant(name, "eager", network, size)
    compiled = torch.compile(network, dynamic=False)
    try:
        with torch.inference_mode():
            compiled(image)
    except Exception as error:  # the tracer and the compiler each raise their own kinds
        logger.warning(f"The compiled {name} is not timed, torch.compile failed: {_first_line(error)}")
        return [eager]
    return [eager, Variant(name, "compiled", compiled, size)]


def onnx_variant(name: str, runtime: str, path: Path) -> Variant:
    """An ONNX file."""
    return Variant(name, runtime, onnx_network(path), file_mb(path))


def traced_variants(name: str, network: DenseNetwork, image: Tensor) -> list[Variant]:
    """The network in ONNX Runtime; none and a warning where it can't be exported, as some that predict masks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        try:
            save_onnx(trace(network, tuple(image.shape[-2:]), channels=image.shape[1]), path, network.output_name)
            return [onnx_variant(name, "ONNX Runtime", path)]
        except Exception as error:  # PyTorch's tracer, its translator and ONNX Runtime each raise their own kinds
            logger.warning(f"The {name} is not timed in ONNX Runtime, its export failed: {_first_line(error)}")
            return []


def latency_report(variants: list[Variant], image: Tensor, runs: int) -> dict[str, Any]:
    """Time the variants in turns.

    Args:
        variants: What to time.
        image: One normalised image (1, 3, hh, ww).
        runs: Timed runs of each.

    Returns:
        `image_size`, `threads`, `device`, `runs`, and `rows` with `network`, `runtime`, `median_ms`, `p95_ms`,
        `file_mb`.
    """
    latencies = measure_latencies([lambda call=variant.call: call(image) for variant in variants], runs)
    rows = [
        {
            "network": variant.network,
            "runtime": variant.runtime,
            **asdict(latency),
            "file_mb": variant.file_mb,
        }
        for variant, latency in zip(variants, latencies, strict=True)
    ]
    return {
        "image_size": list(image.shape[-2:]),
        "threads": torch.get_num_threads(),
        "device": cpu_name(),
        "runs": runs,
        "rows": rows,
    }


def latency_table(report: dict[str, Any]) -> str:
    """A text of how long an image takes, from a `latency_report`."""
    height, width = report["image_size"]
    numbers = ("median_ms", "p95_ms", "file_mb")
    rows = [[row["network"], row["runtime"], *(f"{row[key]:.2f}" for key in numbers)] for row in report["rows"]]
    return (
        f"{report['device']}, threads: {report['threads']}, one image of {width} x {height}, {report['runs']} runs in "
        f"turns\n\n{table(['network', 'runtime', 'median ms', '95th percentile ms', 'MB'], rows)}"
    )


def file_mb(path: Path) -> float:
    """Size of a file in 10^6 bytes."""
    return path.stat().st_size / 1e6


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
