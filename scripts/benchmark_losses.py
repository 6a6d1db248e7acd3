"""What each distillation loss costs: time and memory of its value and gradient, in one table.

    python scripts/benchmark_losses.py [--methods kd at] [--runs 5] [--against COMMIT]

Two images, maps of 64 x 64 at all taps, D channels in the features of student and teacher, C classes, fp32, one thread
of the CPU. `any` stands where D or C changes nothing. Times are CPU milliseconds of the process, medians; `copy` is the
floor: what it takes to copy the maps that the loss reads. `peak` is what the tensors come to above the inputs, the
gradients among them, and `saved` what is kept of that for the backward pass; both are counted, not measured, and the
same in every run (scratch memory inside matrix products is not seen). `state` is the buffers'. A discriminator's own
step is not included.

With `--against`, the losses of another commit are measured beside these, at the largest D and least C: two processes
that take turns, from the same state and maps. `ratio` is the median of this version's times over the other's, and
`products` the floor: the time of this version's matrix products and convolutions alone over the other's whole time. The
last two columns are the relative difference of the values and the largest of the gradients, over a gradient's largest
element.
"""

import os
import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
sys.path.append(str(Path(__file__).resolve().parent))

import argparse
import json
import statistics
import subprocess
import tempfile
from typing import Any

import torch
from loss_bench import Bench, milliseconds

from hf_segkd.evaluation.reports import table
from hf_segkd.losses import LOSSES
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.training.distiller import network_spec

WIDTHS, CLASSES = (128, 512), (19, 150)
MIB = 2**20
HEADER = ("method", "D", "C", "CPU ms", "copy ms", "peak MiB", "saved MiB", "state MiB", "parameters")
HEADER_AGAINST = ("method", "ms before", "ms", "ratio", "products", "peak MiB before", "peak MiB", "value", "gradients")


def tap_names() -> list[str]:
    """The taps that a DeepLabV3+ on a ResNet offers, which are all that losses ask for."""
    with torch.device("meta"):
        network = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(backbone="resnet18"))
    return list(network_spec(network).channels)


def rows(method: str, runs: int) -> list[list[str]]:
    """The lines of a method: one for all sizes that need the same memory."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for classes in CLASSES:
        for width in WIDTHS:
            groups.setdefault(Bench(method, tap_names(), width, classes).memory(), []).append((width, classes))
    lines = []
    for (peak, saved, state, parameters), sizes in groups.items():
        bench = Bench(method, tap_names(), *sizes[0])
        names = [str(values[0]) if len(set(values)) == 1 else "any" for values in zip(*sizes, strict=True)]
        times = [f"{milliseconds(function, runs):.2f}" for function in (bench.step, bench.copy)]
        megabytes = [f"{number / MIB:.1f}" for number in (peak, saved, state)]
        lines.append([method, *names, *times, *megabytes, str(parameters)])
    return lines


class Version:
    """A process that measures the losses of the hf_segkd in a folder."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("loss_bench.py"))]
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, job: Any) -> Any:
        """Let it do a job of `loss_bench.serve`."""
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def rows_against(methods: list[str], commit: str, runs: int) -> list[list[str]]:
    """The lines of the methods that both versions have."""
    root, lines = Path(__file__).resolve().parents[1], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = subprocess.run(["git", "-C", root, "archive", commit, "hf_segkd"], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        versions = old, new = Version(folder), Version(root)
        for method in methods:
            job = {"method": method, "taps": tap_names(), "width": WIDTHS[-1], "classes": CLASSES[0]}
            job["file"] = str(folder / "start.pt")
            if not all([version.ask({**job, "write": version is old}) for version in versions]):
                continue
            results = []
            for version in versions:
                version.ask({"results": str(folder / "results.pt")})
                results.append(torch.load(folder / "results.pt"))
            times = [[version.ask("step") for version in versions] for _ in range(runs)]
            before, now = (statistics.median(column) for column in zip(*times, strict=True))
            ratio = statistics.median(pair[1] / pair[0] for pair in times)
            peaks = [f"{version.ask('peak') / MIB:.1f}" for version in versions]
            floor = new.ask("products") / before
            lines.append([method, f"{before:.1f}", f"{now:.1f}", f"{ratio:.2f}", f"{floor:.2f}", *peaks])
            lines[-1] += [f"{difference:.0e}" for difference in differences(*results)]
    return lines


def differences(before: dict[str, torch.Tensor], now: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Relative difference of the values and the largest of a gradient."""
    if before.keys() != now.keys():
        raise RuntimeError(f"Only one version has gradients of {sorted(before.keys() ^ now.keys())}.")
    largest = {name: (now[name] - before[name]).abs().max() / before[name].abs().max() for name in before}
    return largest.pop("value").item(), max(largest.values()).item()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(LOSSES), choices=list(LOSSES), help="losses to measure")
    parser.add_argument("--runs", type=int, default=5, help="calls whose median is taken")
    parser.add_argument("--against", metavar="COMMIT", help="version to measure beside this one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.against is not None:
        print(table(HEADER_AGAINST, rows_against(options.methods, options.against, options.runs)))
        return
    print(table(HEADER, [line for method in options.methods for line in rows(method, options.runs)]))


if __name__ == "__main__":
    main()
