"""What feature augmentation adds to a training step: python scripts/benchmark_fakd.py [--rounds 7].

ResNet-18 (DeepLabV3+, 150 classes) learns from the features of a ResNet-101, batch 2, 257 x 257, fp32, on the CPU. The
teacher's features are computed once: its forward pass is the same for all. Methods take turns.
"""

import sys
from pathlib import Path

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import argparse
import statistics
import time

import torch

from hf_segkd.losses import create_loss
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.training.distiller import Distiller, network_spec

BATCH, SIZE, CLASSES = 2, 257, 150
PAIRS = {"fakd_pd": ("kd", 1.25), "fakd_cwd": ("cwd", 1.10)}


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which the methods take turns")
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    student, teacher = network("resnet18").train(), network("resnet101").eval()
    batch = {
        "pixel_values": torch.randn(BATCH, 3, SIZE, SIZE),
        "labels": torch.randint(CLASSES, (BATCH, 5, 5))
        .repeat_interleave(52, 1)
        .repeat_interleave(52, 2)[:, :SIZE, :SIZE],
    }
    with torch.inference_mode():
        features = teacher(pixel_values=batch["pixel_values"], output_features=True).features
    features = {tap: value.clone() for tap, value in features.items()}
    methods = [name for pair in PAIRS.items() for name in (pair[0], pair[1][0])]
    distillers = {
        name: Distiller(student, create_loss(name, network_spec(student), network_spec(teacher))) for name in methods
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    for round_number in range(rounds + 1):
        for name, distiller in distillers.items():
            distiller.loss.train()
            distiller.loss.set_progress(0.5)
            start = time.perf_counter()
            distiller(**batch, teacher_features=features)["loss"].backward()
            student.zero_grad()
            if round_number:  # the first warms up
                times[name].append(time.perf_counter() - start)
    print(f"Training step without the teacher's forward pass, {CLASSES} classes, {torch.get_num_threads()} threads\n")
    for name, (plain, goal) in PAIRS.items():
        ratios = [ours / other for ours, other in zip(times[name], times[plain], strict=True)]
        seconds = f"{statistics.median(times[name]):.3f} / {statistics.median(times[plain]):.3f} s"
        spread = f"from {min(ratios):.3f} to {max(ratios):.3f}; goal <= {goal}"
        print(f"{name + ' / ' + plain:16}{statistics.median(ratios):.3f}  ({seconds}; {spread})")


def network(backbone: str) -> DeepLabV3PlusForSemanticSegmentation:
    """A network with random weights."""
    return DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(backbone=backbone, num_labels=CLASSES))


if __name__ == "__main__":
    main()
