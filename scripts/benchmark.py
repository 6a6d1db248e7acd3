"""What distillation costs: ratios of a step of ours to plain versions, measured side by side in one run.

    python scripts/benchmark.py [--rounds 5] [--teacher] [--cached]

ResNet-18 learns from ResNet-101 by AttnFD (DeepLabV3+, 21 classes), batch 2, 257 x 257, fp32, on the CPU.
Times are medians over rounds in which the variants take turns; peak memory is that of a process per variant.
`--teacher` measures the teacher's forward in the number formats and layouts that `teacher_dtype fastest` chooses among,
and a step with its choice, `--cached` steps with a filled teacher cache: CPU time of the process, one thread.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`; here it is last.
HERE = Path(__file__).resolve().parent
sys.path = [*(entry for entry in sys.path if Path(entry).resolve() != HERE), str(HERE)]

import argparse
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial

import torch
from distillation_steps import Case, Steps, random_batch
from torch.utils.data import Dataset

from hf_segkd.networks.arithmetic import Arithmetic, network_in
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.trainer import DistillationTrainer

BATCH, SIZE, CLASSES = 2, 257, 21
CASE = Case("257 x 257", (SIZE, SIZE), BATCH, CLASSES)
# Methods whose steps with a filled teacher cache are measured.
CACHED = ("attnfd", "kd", "cwd", "fakd_cwd")
STEPS = ("student_alone", "bare_sum", "ours", *(f"cached_{method}" for method in CACHED), "as_published")
LOOPS, LOOP_STEPS = ("bare_loop", "trainer_loop"), 20


class RandomImages(Dataset):
    """One batch, drawn in advance, over and over: loading data costs nothing here."""

    def __init__(self) -> None:
        self.images, self.labels = random_batch(CASE)

    def __len__(self) -> int:
        return 1000 * BATCH

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index % BATCH], "labels": self.labels[index % BATCH]}


class Bench(Steps):
    """The steps, and the trainer's loop beside a bare one."""

    def __init__(self) -> None:
        super().__init__(CASE)
        for method in CACHED:
            of_method = Steps(CASE, method, networks=(self.student, self.teacher))
            setattr(self, f"cached_{method}", of_method.cached)

    def bare_loop(self, steps: int) -> None:
        """A plain PyTorch loop over the same step."""
        self.student.train()
        loader = torch.utils.data.DataLoader(RandomImages(), batch_size=BATCH)
        for step, batch in enumerate(loader):
            if step == steps:
                break
            with torch.no_grad():
                features = self.teacher(pixel_values=batch["pixel_values"], output_features=True).features
            self.update(self.distiller(**batch, teacher_features=features)["loss"])

    def trainer_loop(self, steps: int) -> None:
        """The same steps by `DistillationTrainer.train`."""
        self.trainer(steps).train()

    def trainer(self, steps: int) -> DistillationTrainer:
        """A trainer for so many steps."""
        arguments = DistillationArguments(
            output_dir=self.arguments.output_dir,
            use_cpu=True,
            method=self.arguments.method,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            logging_steps=10,
            save_strategy="no",
            disable_tqdm=True,
        )
        return DistillationTrainer(self.student, arguments, teacher=self.teacher, train_dataset=RandomImages())


def seconds(function: Callable[[], None]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_memory(variant: str) -> float:
    """Peak memory in MiB of a fresh process that takes three steps of a variant."""
    command = [sys.executable, __file__, "--memory_of", variant]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which the variants take turns")
    parser.add_argument("--teacher", action="store_true", help="measure the teacher's number formats only")
    parser.add_argument("--cached", action="store_true", help="measure steps with a filled teacher cache only")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.teacher:
        print_teacher(options.rounds)
        return
    bench = Bench()
    if options.cached:
        torch.set_num_threads(1)
        print(f"CPU seconds, 1 thread, batch {BATCH}, {SIZE} x {SIZE}, medians, ratio to the last line\n")
        cached = [f"cached_{method}" for method in CACHED]
        for names in (("ours", *cached, "student_alone"), ("cached_attnfd", "as_published")):
            print_in_turn({name: getattr(bench, name) for name in names}, options.rounds)
            print()
        return
    if options.memory_of:
        run = getattr(bench, options.memory_of)
        if options.memory_of in LOOPS:
            run(3)
        else:
            for _ in range(3):
                run()
        # Not getrusage: its peak begins with that of the process that started this one.
        status = Path("/proc/self/status").read_text()
        print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)
        return

    times: dict[str, list[float]] = {name: [] for name in (*STEPS, *LOOPS)}
    for round_number in range(options.rounds + 1):
        for name in STEPS:
            elapsed = seconds(getattr(bench, name))
            if round_number:  # the first warms up
                times[name].append(elapsed)
    for _ in range(max(3, options.rounds // 2)):
        times["bare_loop"].append(seconds(lambda: bench.bare_loop(LOOP_STEPS)))
        trainer = bench.trainer(LOOP_STEPS)  # building it is not timed
        times["trainer_loop"].append(seconds(trainer.train))
    print(f"AttnFD, ResNet-18 <- ResNet-101, batch {BATCH}, {SIZE} x {SIZE}, fp32, CPU,", end=" ")
    print(f"{torch.get_num_threads()} threads, medians, per step\n")
    print(f"{'':16}{'seconds':>9}{'peak MiB':>10}")
    for name, values in times.items():
        per_step = statistics.median(values) / (LOOP_STEPS if name in LOOPS else 1)
        print(f"{name:16}{per_step:9.3f}{peak_memory(name):10.0f}")
    print()
    print_ratio("ours / bare_sum", times["ours"], times["bare_sum"], "goal <= 1.05")
    print_ratio("ours / as_published", times["ours"], times["as_published"], "goal <= 0.5")
    print_ratio("cached_attnfd / as_published", times["cached_attnfd"], times["as_published"], "goal <= 0.35")
    for method in CACHED:
        goal = 1.15 if method == "attnfd" else 1.05
        ratio = f"cached_{method} / student_alone"
        print_ratio(ratio, times[f"cached_{method}"], times["student_alone"], f"goal <= {goal}")
    print_ratio("trainer_loop / bare_loop", times["trainer_loop"], times["bare_loop"], "goal <= 1.03")


def print_teacher(rounds: int) -> None:
    """The teacher's forward in each way, and steps without and with the fastest, in CPU time of one thread."""
    torch.set_num_threads(1)
    steps = Steps(CASE)
    images = steps.batch["pixel_values"]
    ways = [Arithmetic("float32", False, last) for last in (False, True)]
    ways += [Arithmetic(dtype, True, last) for dtype in ("float32", "bfloat16") for last in (False, True)]

    def forward(teacher: torch.nn.Module) -> None:
        with torch.no_grad():
            teacher(pixel_values=images.to(teacher.dtype), output_features=True)

    print(
        f"CPU seconds, 1 thread, batch {BATCH}, {SIZE} x {SIZE}, medians of {rounds} rounds, ratio to the last line\n"
    )
    print_in_turn(
        {str(way): partial(forward, network_in(way, steps.teacher, images)) for way in reversed(ways)}, rounds
    )
    print()
    names = ("student_alone", "fastest_teacher", "ours", "as_published")
    print_in_turn({name: getattr(steps, name) for name in names}, rounds)


def print_in_turn(functions: dict[str, Callable[[], None]], rounds: int) -> None:
    """CPU time of functions that take turns, and the median of the ratios to the last of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if round_number:  # the first warms up
                times[name].append(time.process_time() - start)
    last = list(times.values())[-1]
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, last, strict=True))
        print(f"{name:46}{statistics.median(values):7.3f}{ratio:7.2f}")


def print_ratio(name: str, ours: list[float], other: list[float], goal: str) -> None:
    """Median of the ratios round by round, so that a drift of the machine's speed cancels."""
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    print(f"{name:34}{statistics.median(ratios):.3f}  (from {min(ratios):.3f} to {max(ratios):.3f}; {goal})")


if __name__ == "__main__":
    main()
