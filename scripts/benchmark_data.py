"""Ratios of speed, measured in one run on one thread: the crop before the resize, and the metric.

python scripts/benchmark_data.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from hf_segkd.data import TrainTransform
from hf_segkd.data.transforms import CropWindow
from hf_segkd.evaluation.metrics import MeanIoU

IMAGE_SIZE = (1024, 2048)  # height, width of Cityscapes
CROP_SIZE = (512, 1024)  # CIRKD's protocol on Cityscapes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24, help="images that the transforms are timed on")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each; the median counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for crop_size in ((512, 512), CROP_SIZE):
        compare_crops(arguments.images, arguments.repeats, crop_size)
    for num_labels in (21, 150):
        compare_metrics(arguments.repeats, num_labels)


class ResizeThenCrop(CropWindow):
    """The usual order: resize the whole image, then crop."""

    def cut(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """See `CropWindow`."""
        (height, width), (top, left) = self.scaled_size, self.corner
        return image.resize((width, height), resample).crop((left, top, left + self.size[1], top + self.size[0]))


class ResizeThenCropTransform(TrainTransform):
    """`TrainTransform` in the usual order, everything else equal."""

    def draw_window(self, image_size: tuple[int, int], rng: np.random.Generator) -> CropWindow:
        """See `TrainTransform`."""
        window = super().draw_window(image_size, rng)
        return ResizeThenCrop(window.scaled_size, window.corner, window.size)


def compare_crops(num_images: int, repeats: int, crop_size: tuple[int, int]) -> None:
    """Print images per second of the whole training transform in both orders, and of the resampling alone."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8))
    labels = Image.fromarray(rng.integers(0, 19, IMAGE_SIZE, dtype=np.uint8))
    transforms = [ResizeThenCropTransform(crop_size), TrainTransform(crop_size)]

    def whole(transform: TrainTransform) -> None:
        for index in range(num_images):
            transform(image, labels, np.random.default_rng(index))

    def resampling(transform: TrainTransform) -> None:
        for index in range(num_images):
            window = transform.draw_window(IMAGE_SIZE, np.random.default_rng(index))
            window.cut(image, Image.Resampling.BILINEAR)
            window.cut(labels, Image.Resampling.NEAREST)

    print(f"2048 x 1024 images, crop {crop_size[1]} x {crop_size[0]}, scale 0.5 to 2, PIL, without decoding:")
    for name, function in (("scale and crop", resampling), ("whole transform", whole)):
        resize_first, crop_first = interleaved_medians([lambda t=t, f=function: f(t) for t in transforms], repeats)
        print(
            f"  {name:<16} resize then crop {num_images / resize_first:6.1f} images/s, crop then resize "
            f"{num_images / crop_first:6.1f} images/s: {resize_first / crop_first:.1f} times faster"
        )


def compare_metrics(repeats: int, num_labels: int) -> None:
    """Print the time of `MeanIoU` and of the histograms that evaluate's mean_iou computes for each image."""
    rng = np.random.default_rng(0)
    references = rng.integers(0, num_labels, (64, 513, 513), dtype=np.uint8)
    references[rng.random(references.shape) < 0.05] = 255
    predictions = rng.integers(0, num_labels, references.shape, dtype=np.uint8)
    metric = MeanIoU(num_labels)
    results = {}

    def ours() -> None:
        results["ours"] = metric.compute(predictions=predictions, references=references)["mean_iou"]

    def histograms() -> None:
        results["histograms"] = mean_iou_by_histograms(predictions, references, num_labels)

    slow, fast = interleaved_medians([histograms, ours], repeats)
    difference = abs(results["ours"] - results["histograms"])
    print(
        f"mean IoU of 64 masks of 513 x 513, {num_labels} classes (difference {difference:.1e}): histograms per image "
        f"{slow * 1e3:.0f} ms, MeanIoU {fast * 1e3:.0f} ms: {slow / fast:.1f} times faster"
    )


def mean_iou_by_histograms(predictions: np.ndarray, references: np.ndarray, num_labels: int) -> float:
    """Mean IoU as evaluate's mean_iou defines it: areas of intersection and union from three histograms per image.

    Written from the definition: the evaluate package has no copy of that metric, it is fetched from the Hub.
    """
    areas = np.zeros((3, num_labels))  # intersection, predicted, labelled
    for prediction, reference in zip(predictions, references, strict=True):
        valid = reference != 255
        prediction, reference = prediction[valid], reference[valid]
        for row, ids in enumerate((prediction[prediction == reference], prediction, reference)):
            areas[row] += np.histogram(ids, bins=num_labels, range=(0, num_labels - 1))[0]
    intersection, predicted, labelled = areas
    return float(np.nanmean(intersection / (predicted + labelled - intersection)))


def interleaved_medians(functions: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median seconds of each function; they take turns, so that a busy machine disturbs all of them alike."""
    for function in functions:
        function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, durations in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            durations.append(time.perf_counter() - start)
    return [statistics.median(durations) for durations in seconds]


if __name__ == "__main__":
    main()
