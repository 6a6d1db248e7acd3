"""A loss with random maps to measure it on. Run as a script, it measures the losses of the hf_segkd on its path.

`benchmark_losses.py` does so for two versions at a time: a job (`serve`) is a line of JSON on the standard input, its
answer one on the standard output. So this file imports nothing of hf_segkd but what versions have in common.
"""

import os
import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler looks for a GPU and complains

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from hf_segkd.losses import LOSSES, create_loss
from hf_segkd.types import NetworkSpec

IMAGES, SIZE = 2, 64
PRODUCTS = {"mm", "mm_", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "convolution", "convolution_backward"}


class Bench:
    """A loss and a batch of random maps for it."""

    def __init__(self, method: str, taps: list[str], width: int, classes: int) -> None:
        torch.manual_seed(0)
        spec = NetworkSpec({tap: classes if tap == "logits" else width for tap in taps}, classes)
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

    def products(self, runs: int) -> float:
        """CPU milliseconds of a step's matrix products and convolutions alone: on random numbers, one after another."""
        with Products() as products:
            self.step()
        return sum(number * milliseconds(call, runs) for call, number in products.calls.values())

    def results(self) -> dict[str, Tensor]:
        """Value and gradients of a step."""
        tensors = {**self.student, **dict(self.loss.named_parameters())}
        for tensor in tensors.values():
            tensor.grad = None
        value = sum(self.loss(self.student, self.teacher, self.labels).values())
        value.backward()
        gradients = {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
        return {"value": value.detach(), **gradients}

    def start(self, path: str, write: bool) -> None:
        """Write the maps and the loss's state to a file, or take them from it, so that two versions have the same."""
        if write:
            torch.save([self.student, self.teacher, self.labels, self.loss.state_dict()], path)
        else:
            self.student, self.teacher, self.labels, state = torch.load(path)
            self.student = {tap: tensor.detach().requires_grad_() for tap, tensor in self.student.items()}
            self.loss.load_state_dict(state)


class Products(TorchDispatchMode):
    """Notes the matrix products and convolutions that are called, and how often each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Callable[[], Any], int]] = {}
        self.storages: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.overloadpacket.__name__ in PRODUCTS:
            key = f"{function} {tree_map_only(Tensor, lambda x: (tuple(x.shape), x.stride()), (args, kwargs))}"
            call, number = self.calls.get(key, (None, 0))
            if call is None:
                stand_ins = tree_map_only(Tensor, self.stand_in, args)
                call = lambda: function(*stand_ins, **(kwargs or {}))  # noqa: E731
            self.calls[key] = call, number + 1
        return function(*args, **(kwargs or {}))

    def stand_in(self, tensor: Tensor) -> Tensor:
        """Random numbers in its shape and strides; what has one memory is not read twice as two."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), storage.nbytes(), tensor.dtype
        if key not in self.storages:
            self.storages[key] = torch.randn(storage.nbytes() // tensor.itemsize, dtype=tensor.dtype)
        return self.storages[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


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


def serve() -> None:
    """Answer jobs until the input ends.

    `{"method", "taps", "width", "classes", "file", "write"}` makes a bench, null where there is no such method;
    `{"results": FILE}` writes value and gradients; `"step"`, `"products"` and `"peak"` measure.
    """
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    bench = None
    for line in sys.stdin:
        job, answer = json.loads(line), None
        if job == "step":
            answer = milliseconds(bench.step, 1)
        elif job == "products":
            answer = bench.products(3)
        elif job == "peak":
            answer = bench.peak_bytes()
        elif "results" in job:
            torch.save(bench.results(), job["results"])
        elif job["method"] in LOSSES:
            bench = Bench(job["method"], job["taps"], job["width"], job["classes"])
            bench.start(job["file"], job["write"])
            answer = True
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
