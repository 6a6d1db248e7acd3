"""What a GPU does here, in one command: the tests that need one, and what a distillation step costs on it.

    python scripts/gpu_check.py [--minutes 8] [--device cuda] [--tiny]

ResNet-18 learns from ResNet-101 (DeepLabV3+) at the papers' sizes, on random images and from random weights: it needs
neither network nor data. It measures in the order of worth, stops before the time is over, and says what it left out.
On a GPU the result replaces what stands between the markers in docs/gpu.md; anywhere it is printed. `--tiny` does the
same with small networks, in seconds.
"""

import os
import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`; here it is last.
HERE = Path(__file__).resolve().parent
sys.path = [*(entry for entry in sys.path if Path(entry).resolve() != HERE), str(HERE)]
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several, Trainer would divide each batch among them

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import importlib.util
import itertools
import platform
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from distillation_steps import ROOT, Case, Steps, waits

from hf_segkd.evaluation.reports import table
from hf_segkd.losses import LOSSES

PAGE = ROOT / "docs" / "gpu.md"
START, END = "<!-- measured: made by scripts/gpu_check.py -->", "<!-- end of measured -->"
TESTS = ROOT / "tests" / "gpu"
CASES = (
    Case("VOC", (513, 513), 6, 21),
    Case("Cityscapes", (512, 1024), 4, 19),
    Case("ADE20K", (512, 512), 16, 150),
)
_TINY = {"model_type": "segkd-resnet", "width": 8, "depths": [1, 1, 1, 1], "out_features": ["stage1", "stage4"]}
_TINY_HEAD = {"backbone_config": _TINY, "aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 4}
TINY_CASES = (Case("tiny", (33, 33), 2, 4, student=_TINY_HEAD, teacher=_TINY_HEAD),)
VARIANTS = ("student_alone", "ours", "cached", "fastest_teacher", "as_published")
PARTS = ("teacher's forward", "student's forward", "loss", "backward", "optimizer")
PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "evaluate", "numpy")
WARM_UP, ROUNDS, MOST_SECONDS = 3, 10, 20
# What compiling both networks may take.
COMPILATION = 120


class Clock:
    """The time that the check may take."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    @contextlib.contextmanager
    def alarm(self) -> Iterator[None]:
        """Inside, TimeoutError is raised when the time is over."""

        def stop(*_: object) -> None:
            raise TimeoutError

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(1.0, self.left))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class Measurement:
    """Steps of one case, method and precision, timed in turn.

    Args:
        steps: The steps.
        rounds: How often each is timed, less where that takes long.

    Attributes:
        seconds: Variant -> seconds of each of its rounds.
        memory: Variant -> peak of the allocated memory in bytes; empty where there is no GPU.
        failed: Variant -> why it did not run.
    """

    def __init__(self, steps: Steps, rounds: int) -> None:
        self.steps, self.rounds = steps, rounds
        self.seconds: dict[str, list[float]] = {}
        self.memory: dict[str, int] = {}
        self.failed: dict[str, str] = {}

    def run(self, variants: Sequence[str], clock: Clock) -> None:
        """Time the variants in turn, after a warm-up of each in which the memory is read."""
        for variant in variants:
            self._warm_up(variant)
        start = time.monotonic()
        for _ in range(self.rounds):
            for variant in self.seconds:
                self.seconds[variant].append(self._timed(variant))
            if time.monotonic() - start > min(MOST_SECONDS, clock.left / 4):
                break

    def ratio(self, variant: str, other: "Measurement", base: str) -> str:
        """Median of the time beside that of another variant."""
        if not self.seconds.get(variant) or not other.seconds.get(base):
            return ""
        return f"{statistics.median(self.seconds[variant]) / statistics.median(other.seconds[base]):.2f}"

    def shares(self) -> list[str]:
        """Share of each of PARTS in a step of ours, in per cent."""
        marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.steps.mark = lambda part: marks.append((part, self._now()))
        totals: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for _ in range(self.rounds):
            marks.clear()
            self.steps.mark("start")
            self.steps.ours()
            self._wait()
            for (_, begin), (part, end) in itertools.pairwise(marks):
                totals[part] += end - begin if isinstance(end, float) else begin.elapsed_time(end)
        self.steps.mark = lambda part: None
        return [f"{100 * seconds / sum(totals.values()):.0f} %" for seconds in totals.values()]

    def _warm_up(self, variant: str) -> None:
        on_gpu = self.steps.device.type == "cuda"
        try:
            for _ in range(WARM_UP if self.rounds > 1 else 1):
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                self._timed(variant)
        except torch.OutOfMemoryError:
            self.failed[variant] = "out of memory"
            self.steps.teacher.eval().requires_grad_(False)
            self.steps.optimizer.zero_grad()
            gc.collect()
            torch.cuda.empty_cache()
            return
        self.seconds[variant] = []
        if on_gpu:
            self.memory[variant] = torch.cuda.max_memory_allocated()

    def _timed(self, variant: str) -> float:
        self._wait()
        start = time.perf_counter()
        getattr(self.steps, variant)()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.steps.device.type == "cuda":
            torch.cuda.synchronize()

    def _now(self) -> float | torch.cuda.Event:
        if self.steps.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Check:
    """All measurements, in the order of worth.

    Args:
        device: `cuda` or `cpu`.
        cases: What is measured; the first is measured in every way.
        clock: The time that is left.
        tiny: One round of each, nothing compiled.
    """

    def __init__(self, device: str, cases: Sequence[Case], clock: Clock, tiny: bool) -> None:
        self.device, self.cases, self.clock, self.tiny = device, cases, clock, tiny
        self.rounds = 1 if tiny else ROUNDS
        self.rows: list[list[str]] = []
        self.parts: list[list[str]] = []
        self.methods: list[list[str]] = []
        self.waits: list[str] = []
        self.left_out: list[str] = []
        self.failed: list[str] = []
        self._plain: dict[str, Measurement] = {}  # case -> its float32 measurement

    def run(self) -> None:
        """Measure until the time is over."""
        first, *others = self.cases
        jobs: list[tuple[str, Callable[[], None]]] = [
            (f"{first.name}, fp32", lambda: self.precision(first, "fp32", None)),
            (f"{first.name}, bf16", lambda: self.precision(first, "bf16", torch.bfloat16)),
        ]
        if not self.tiny:
            jobs.append((f"{first.name}, bf16 and compiled", lambda: self.compiled(first)))
        for case in others:
            jobs.append((f"{case.name}, fp32", lambda case=case: self.precision(case, "fp32", None)))
            jobs.append((f"{case.name}, bf16", lambda case=case: self.precision(case, "bf16", torch.bfloat16)))
        methods = ("kd",) if self.tiny else tuple(LOSSES)
        jobs += [(f"{first.name}, {name}", lambda name=name: self.method(first, name)) for name in methods]
        longest = 0.0
        for name, job in jobs:
            compiles = name.endswith("compiled")
            if self.clock.left < (COMPILATION if compiles else 1.5 * longest):
                self.left_out.append(name)
                continue
            start = time.monotonic()
            try:
                with self.clock.alarm():
                    job()
            except TimeoutError:
                self.left_out.append(f"{name} (not ready in time)")
            except (RuntimeError, ValueError) as error:  # the others are still worth their time
                self.failed.append(f"{name}: {type(error).__name__}: {error}")
            if not compiles:
                longest = max(longest / 2, time.monotonic() - start)  # a method takes less than a case
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def precision(self, case: Case, name: str, autocast: torch.dtype | None) -> None:
        """All variants of AttnFD in one number format, the shares of its parts, and what it waits for."""
        steps = Steps(case, device=self.device, autocast=autocast)
        measured = Measurement(steps, self.rounds)
        measured.run(VARIANTS, self.clock)
        if autocast is None:
            self._plain[case.name] = measured
        self._add(case, name, measured, VARIANTS)
        if "ours" in measured.seconds:
            self.parts.append([f"{case.name}, {name}", *measured.shares()])
            found = waits(steps.ours, steps.device)
            places = ", ".join(f"{place} ({count})" for place, count in found.items())
            self.waits.append(f"{case.name}, {name}: {sum(found.values())} {places}".strip())

    def compiled(self, case: Case) -> None:
        """The same in bfloat16 with student and teacher compiled."""
        steps = Steps(case, device=self.device, autocast=torch.bfloat16, backend="inductor")
        measured = Measurement(steps, self.rounds)
        variants = ("student_alone", "ours", "cached")
        measured.run(variants, self.clock)
        self._add(case, "bf16, compiled", measured, variants)

    def method(self, case: Case, name: str) -> None:
        """One other method's step in float32, without and with a cache."""
        steps = Steps(case, name, device=self.device)
        measured = Measurement(steps, self.rounds)
        measured.run(("student_alone", "ours", "cached"), self.clock)
        ratios = [measured.ratio(variant, measured, "student_alone") for variant in ("ours", "cached")]
        milliseconds = [self._milliseconds(measured, variant) for variant in ("ours", "cached")]
        found = sum(waits(steps.ours, steps.device).values()) if "ours" in measured.seconds else ""
        self.methods.append([f"`{name}`", *milliseconds, *ratios, str(found)])

    def _add(self, case: Case, precision: str, measured: Measurement, variants: Sequence[str]) -> None:
        plain = self._plain.get(case.name, measured)
        for variant in variants:
            row = [f"{case.name}, {case.size[0]} x {case.size[1]}, batch {case.batch}", precision]
            row += [variant.replace("_", " "), self._milliseconds(measured, variant)]
            seconds = measured.seconds.get(variant)
            row.append(f"{case.batch / statistics.median(seconds):.1f}" if seconds else "")
            memory = measured.memory.get(variant)
            row.append("" if memory is None else f"{memory / 2**20:.0f}")
            row.append(measured.ratio(variant, measured, "student_alone"))
            row.append(measured.ratio(variant, measured, "as_published"))
            row.append(measured.ratio(variant, plain, "as_published"))
            self.rows.append(row)

    @staticmethod
    def _milliseconds(measured: Measurement, variant: str) -> str:
        if variant in measured.failed:
            return measured.failed[variant]
        return f"{1000 * statistics.median(measured.seconds[variant]):.1f}"

    def text(self, tests: str) -> str:
        """The page's part."""
        step = (
            "case",
            "precision",
            "step",
            "ms",
            "images/s",
            "peak MiB",
            "/ student",
            "/ published",
            "/ published fp32",
        )
        lines = [f"{machine(self.device)}\n", f"Tests: {tests}\n", table(step, self.rows)]
        lines += ["\nShare of the parts in a step of ours:\n", table(("case", *PARTS), self.parts)]
        lines += ["\nWaits for the device in a step of ours:\n", *(f"- {line}" for line in self.waits)]
        if self.methods:
            header = ("method", "ms", "cached, ms", "/ student", "cached / student", "waits")
            lines += [f"\nOther methods, {self.cases[0].name}, fp32:\n", table(header, self.methods)]
        lines += [f"\nLeft out for want of time: {'; '.join(self.left_out) or 'nothing'}."]
        lines += ["\nFailed:\n", *(f"- {failure}" for failure in self.failed)] if self.failed else []
        return "\n".join(lines)


def machine(device: str) -> str:
    """Device, versions and date."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    installed = [(package, version(package)) for package in PACKAGES]
    versions = [f"{package} {found}" for package, found in installed if found is not None]
    missing = [package for package, found in installed if found is None]
    if device == "cuda":
        versions.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    tf32 = "; convolutions of fp32 in TF32" if device == "cuda" and torch.backends.cudnn.allow_tf32 else ""
    absent = f"; missing: {', '.join(missing)}" if missing else ""
    return f"{name}, {datetime.date.today():%Y-%m-%d}; {', '.join(versions)}{tf32}{absent}."


def version(package: str) -> str | None:
    """The installed version; None without one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_tests(seconds: float) -> str:
    """Run the tests marked `gpu`; their last line, which counts them."""
    if not TESTS.is_dir() or importlib.util.find_spec("pytest") is None:
        return "not run: they need pytest and the repository's tests folder."
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rfEs", str(TESTS)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"failed: not ready after {seconds:.0f} seconds."
    print(done.stdout[-8000:], done.stderr[-2000:], flush=True)
    return (done.stdout.strip().splitlines() or ["no output"])[-1]


def with_measured(page: str, text: str) -> str:
    """The page with this text between the markers."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{text}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print, and write the page where there is a GPU; returns 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="most time that all takes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to measure")
    parser.add_argument("--tiny", action="store_true", help="small networks, one round, nothing compiled")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("no CUDA device is there; --device cpu --tiny tries the same code on the CPU.")
    clock = Clock(options.minutes)
    tests = run_tests(60 * options.minutes / 2) if on_gpu else "not run without a GPU."
    check = Check(options.device, TINY_CASES if options.tiny else CASES, clock, options.tiny)
    check.run()
    text = check.text(tests)
    print(text)
    if on_gpu and not options.tiny:
        PAGE.write_text(with_measured(PAGE.read_text(), text))
    return 1 if check.failed or "failed" in tests or "error" in tests else 0


if __name__ == "__main__":
    sys.exit(main())
