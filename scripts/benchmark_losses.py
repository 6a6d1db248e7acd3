"""What each distillation loss costs: time and memory of its value and gradient, in one table.

    python scripts/benchmark_losses.py [--methods kd at] [--runs 5]

Two images, maps of 64 x 64 at all taps, D channels in the features of student and teacher, C classes, fp32, one thread
of the CPU. `any` stands where D or C changes nothing. Times are CPU milliseconds of the process, medians; `copy` is the
floor: what it takes to copy the maps that the loss reads. `peak` is what the tensors come to above the inputs, the
gradients among them, and `saved` what is kept of that for the backward pass; both are counted, not measured, and the
same in every run (scratch memory inside matrix products is not seen). `state` is the buffers'. A discriminator's own
step is not included.
"""

import os
import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler looks for a GPU and complains

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor

from hf_segkd.evaluation.reports import table
from hf_segkd.losses import LOSSES, create_loss
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.training.distiller import network_spec
from hf_segkd.types import NetworkSpec

IMAGES, SIZE = 2, 64
WIDTHS, CLASSES = (128, 512), (19, 150)
MIB = 2**20
HEADER = ("method", "D", "C", "CPU ms", "copy ms", "peak MiB", "saved MiB", "state MiB", "parameters")


class Bench:
    """A loss and a batch of random maps for it."""

    def __init__(self, method: str, width: int, classes: int) -> None:
        torch.manual_seed(0)
        spec = NetworkSpec({tap: classes if tap == "logits" else width for tap in tap_names()}, classes)
        self.loss = create_loss(method, spec, spec)
        self.loss.set_progress(0.5)
        self.student = {tap: random_map(spec.channels[tap]).requires_grad_() for tap in self.loss.student_taps}
        self.teacher = {tap: random_map(spec.channels[tap]) for tap in self.loss.teacher_taps}
        if self.loss.uses_classifier_weight:
            self.student["classifier_weight"] = (0.1 * torch.randn(classes, width, 1, 1)).requires_grad_()
        blocks = torch.randint(classes, (IMAGES, 8, 8))
        self.labels = blocks.repeat_interleave(SIZE, 1).repeat_interleave(SIZE, 2)  # 512 x 512
        self.step()  # allocates what stays, such as the gradients' buffers of the first step

    def step(self) -> None:
        """Value and gradient."""
        for tensor in (*self.student.values(), *self.loss.parameters()):
            tensor.grad = None
        sum(self.loss(self.student, self.teacher, self.labels).values()).backward()

    def copy(self) -> None:
        """The floor: a copy of the maps that the loss reads."""
        for tensor in (*self.student.values(), *self.teacher.values()):
            tensor.detach().clone()

    def memory(self) -> tuple[int, int, int, int]:
        """Bytes at the peak, bytes saved for backward, bytes of the buffers, number of parameters."""
        state = sum(buffer.nbytes for buffer in self.loss.buffers())
        parameters = sum(parameter.numel() for parameter in self.loss.parameters())
        return self.peak_bytes(), self.saved_bytes(), state, parameters

    def peak_bytes(self) -> int:
        """Largest sum of the tensors' bytes during a step, above what there is before it."""
        for tensor in (*self.student.values(), *self.loss.parameters()):
            tensor.grad = None
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            self.step()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(path))
            events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
        live = peak = 0
        for event in sorted(events, key=lambda event: event["ts"]):
            live += event["args"]["Bytes"]
            peak = max(peak, live)
        return peak

    def saved_bytes(self) -> int:
        """Bytes that autograd keeps from the forward to the backward pass, the loss's inputs and parameters aside."""
        given = {x.untyped_storage().data_ptr() for x in (*self.student.values(), *self.teacher.values(), self.labels)}
        given |= {x.untyped_storage().data_ptr() for x in (*self.loss.parameters(), *self.loss.buffers())}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.loss(self.student, self.teacher, self.labels)
        return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in given)


def tap_names() -> list[str]:
    """The taps that a DeepLabV3+ on a ResNet offers, which are all that losses ask for."""
    with torch.device("meta"):
        network = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(backbone="resnet18"))
    return list(network_spec(network).channels)


def random_map(channels: int) -> Tensor:
    """(images, channels, size, size), as varied as logits are."""
    return 3.0 * torch.randn(IMAGES, channels, SIZE, SIZE)


def milliseconds(function: Callable[[], None], runs: int) -> float:
    """Median of the CPU time of a call."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times)


def rows(method: str, runs: int) -> list[list[str]]:
    """The lines of a method: one for all sizes that need the same memory."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for classes in CLASSES:
        for width in WIDTHS:
            groups.setdefault(Bench(method, width, classes).memory(), []).append((width, classes))
    lines = []
    for (peak, saved, state, parameters), sizes in groups.items():
        bench = Bench(method, *sizes[0])
        names = [str(values[0]) if len(set(values)) == 1 else "any" for values in zip(*sizes, strict=True)]
        times = [f"{milliseconds(function, runs):.2f}" for function in (bench.step, bench.copy)]
        megabytes = [f"{number / MIB:.1f}" for number in (peak, saved, state)]
        lines.append([method, *names, *times, *megabytes, str(parameters)])
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(LOSSES), choices=list(LOSSES), help="losses to measure")
    parser.add_argument("--runs", type=int, default=5, help="calls whose median is taken")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(table(HEADER, [line for method in options.methods for line in rows(method, options.runs)]))


if __name__ == "__main__":
    main()
