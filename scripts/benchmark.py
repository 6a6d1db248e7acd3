"""What distillation costs: ratios of a step of ours to plain versions, measured side by side in one run.

    python scripts/benchmark.py [--rounds 5]

ResNet-18 learns from ResNet-101 by AttnFD (DeepLabV3+, 21 classes), batch 2, 257 x 257, fp32, on the CPU.
Times are medians over rounds in which the variants take turns; peak memory is that of a process per variant.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

import torch
from torch.utils.data import Dataset

from hf_segkd.losses import create_loss
from hf_segkd.losses.attnfd import normalized_distance
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.distiller import Distiller, network_spec
from hf_segkd.training.parameter_groups import parameter_groups
from hf_segkd.training.teacher_cache import TeacherCache
from hf_segkd.training.trainer import DistillationTrainer
from hf_segkd.types import Features

BATCH, SIZE, CLASSES = 2, 257, 21
# Methods whose steps with a filled teacher cache are measured.
CACHED = ("attnfd", "kd", "cwd", "fakd_cwd")
STEPS = ("student_alone", "bare_sum", "ours", *(f"cached_{method}" for method in CACHED), "as_published")
LOOPS, LOOP_STEPS = ("bare_loop", "trainer_loop"), 20


class RandomImages(Dataset):
    """One batch, drawn in advance, over and over: loading data costs nothing here."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
        self.labels = torch.randint(CLASSES, (BATCH, SIZE, SIZE), generator=generator)

    def __len__(self) -> int:
        return 1000 * BATCH

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index % BATCH], "labels": self.labels[index % BATCH]}


class Bench:
    """Networks, batch and optimizer that the variants share."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.student = network("resnet18").train()
        self.teacher = network("resnet101").eval()
        self.loss = create_loss("attnfd", network_spec(self.student), network_spec(self.teacher))
        self.distiller = Distiller(self.student, self.loss)
        self.arguments = DistillationArguments(output_dir=tempfile.mkdtemp(), use_cpu=True, method="attnfd")
        self.optimizer = torch.optim.SGD(parameter_groups(self.distiller, self.arguments), lr=1e-3, momentum=0.9)
        data = RandomImages()
        self.batch = {"pixel_values": data.images, "labels": data.labels}
        for method in CACHED:
            setattr(self, f"cached_{method}", self.cached(method))

    def update(self, loss: torch.Tensor) -> None:
        """Backward and optimizer step."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def cached(self, method: str) -> Callable[[], None]:
        """The distillation step with what the loss reads of the teacher in files of 16 bits."""
        loss = create_loss(method, network_spec(self.student), network_spec(self.teacher))
        distiller = Distiller(self.student, loss)
        optimizer = torch.optim.SGD(parameter_groups(distiller, self.arguments), lr=1e-3, momentum=0.9)
        cache = TeacherCache(tempfile.mkdtemp(), torch.bfloat16, {})  # random weights give more than float16 holds

        def taught(images: torch.Tensor) -> Features:
            with torch.no_grad():
                features = self.teacher(pixel_values=images, output_features=True).features
            return {tap: features[tap] for tap in loss.teacher_taps}

        def step() -> None:
            features = cache.features(self.batch["pixel_values"], ["first", "second"], taught)
            distiller(**self.batch, teacher_features=features)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def student_alone(self) -> None:
        """The student's step on its labels."""
        self.update(self.student(**self.batch).loss)

    def bare_sum(self) -> None:
        """The floor: the student's step on its labels, and the teacher's forward in inference mode."""
        with torch.inference_mode():
            self.teacher(pixel_values=self.batch["pixel_values"])
        self.update(self.student(**self.batch).loss)

    def ours(self) -> None:
        """The distillation step as the trainer takes it."""
        with torch.no_grad():
            features = self.teacher(pixel_values=self.batch["pixel_values"], output_features=True).features
        self.update(self.distiller(**self.batch, teacher_features=features)["loss"])

    def as_published(self) -> None:
        """As AttnFD's released code does it: the teacher in training mode and in the autograd graph."""
        self.teacher.train().requires_grad_(True)
        teacher = self.teacher(pixel_values=self.batch["pixel_values"], output_features=True).features
        student = self.student(**self.batch, output_features=True)
        modules = zip(self.loss.student_attention, self.loss.connectors, self.loss.teacher_attention, strict=True)
        distances = [
            normalized_distance(connector(attention(student.features[place])), teacher_attention(teacher[place]))
            for place, (attention, connector, teacher_attention) in zip(self.loss.student_taps, modules, strict=True)
        ]
        self.update(student.loss + self.loss.weights["attnfd"] * sum(distances))
        self.teacher.eval().requires_grad_(False).zero_grad()

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


def network(backbone: str) -> DeepLabV3PlusForSemanticSegmentation:
    """A network with random weights."""
    return DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(backbone=backbone, num_labels=CLASSES))


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
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    bench = Bench()
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


def print_ratio(name: str, ours: list[float], other: list[float], goal: str) -> None:
    """Median of the ratios round by round, so that a drift of the machine's speed cancels."""
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    print(f"{name:34}{statistics.median(ratios):.3f}  (from {min(ratios):.3f} to {max(ratios):.3f}; {goal})")


if __name__ == "__main__":
    main()
