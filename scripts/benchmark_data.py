"""Ratios of processor time, in one run on one thread: images from files, the crop before the resize, the metric.

python scripts/benchmark_data.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

# Python puts this folder first on its path, where evaluate.py would hide the package `evaluate`.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from hf_segkd.data import AugmentedDataset, TrainTransform, load_segmentation_dataset
from hf_segkd.data.transforms import CropWindow
from hf_segkd.evaluation.metrics import MeanIoU

IMAGE_SIZE = (1024, 2048)  # height, width of Cityscapes
CROP_SIZE = (512, 1024)  # CIRKD's protocol on Cityscapes
NUM_FILES, NUM_CLASSES = 6, 19
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24, help="images that the transforms are timed on")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each; the median counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compare_pipelines(arguments.repeats, "png", IMAGE_SIZE, 512)
    compare_pipelines(arguments.repeats, "jpg", (375, 500), 513)
    for crop_size in ((512, 512), CROP_SIZE):
        compare_crops(arguments.images, arguments.repeats, crop_size)
    for num_labels, dtype in (
        (21, "uint8"),
        (21, "int64"),
        (150, "uint8"),
        (150, "int64"),
        (847, "uint16"),
        (847, "int64"),
    ):
        compare_metrics(arguments.repeats, num_labels, dtype)


def compare_pipelines(repeats: int, kind: str, size: tuple[int, int], crop: int) -> None:
    """Print the time of an image and its mask, from their files to a training sample, beside torchvision's v2."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "files")
        files = write_files(root, kind, size)
        images = load_segmentation_dataset("folder", root, "train", classes=[str(c) for c in range(NUM_CLASSES)])
        cache = Path(folder, "cache")
        samples = {
            "decode_image alone": lambda epoch: [(decode_image(str(i)), decode_image(str(m))) for i, m in files],
            "torchvision v2, resize first": lambda epoch: [resize_first(*pair, crop) for pair in files],
            "torchvision v2, crop first": lambda epoch: [crop_first(*pair, crop) for pair in files],
            "hf_segkd": ours(images, crop),
            "hf_segkd, cache": ours(images, crop, cache),
            "hf_segkd, jitter": ours(images, crop, photometric="jitter"),
            "hf_segkd, jitter, cache": ours(images, crop, cache, photometric="jitter"),
        }
        torch.manual_seed(0)
        epochs = range(max(1, 24 // NUM_FILES))  # as many scales of each image
        runs = [lambda epoch=epoch, f=f: f(epoch) for epoch in epochs for f in samples.values()]
        seconds = np.reshape(interleaved_medians(runs, repeats), (len(epochs), len(samples))).mean(0) / NUM_FILES
    milliseconds = dict(zip(samples, 1e3 * seconds, strict=True))
    print(f"{size[1]} x {size[0]} {kind} and mask from files to {crop} x {crop}, scale 0.5 to 2, ms an image:")
    for name, own in milliseconds.items():
        ratio = own / milliseconds["torchvision v2, crop first"]
        print(f"  {name:<30} {own:6.2f}   {ratio:.2f} of torchvision v2, crop first")


def write_files(root: Path, kind: str, size: tuple[int, int]) -> list[tuple[Path, Path]]:
    """Images about as hard to decode as photos, 2.6 MB of 2048 x 1024 as PNG and 75 kB of 500 x 375 as JPEG."""
    rng, files = np.random.default_rng(0), []
    height, width = size
    for part in ("images", "labels"):
        Path(root, "train", part).mkdir(parents=True)
    for number in range(NUM_FILES):
        pixels = np.full((height, width, 3), 128.0)
        for side in (8, 32, 128):
            coarse = rng.normal(scale=20 * (side / 32) ** 0.5, size=(height // side + 2, width // side + 2, 3))
            bands = (Image.fromarray(np.float32(band)) for band in np.moveaxis(coarse, 2, 0))
            pixels += np.dstack([band.resize((width, height), Image.Resampling.BICUBIC) for band in bands])
        pixels += rng.normal(scale=1.2 if kind == "png" else 9, size=(height, width, 1))
        classes = rng.integers(0, NUM_CLASSES, (height // 32, width // 32), dtype=np.uint8)
        mask = Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST)
        pair = Path(root, "train", "images", f"{number}.{kind}"), Path(root, "train", "labels", f"{number}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(pair[0], quality=90)
        mask.save(pair[1])
        files.append(pair)
    return files


def ours(images: Dataset, crop: int, cache: Path | None = None, **options: str) -> Callable[[int], list]:
    """Makes all samples of an epoch."""
    augmented = AugmentedDataset(images, TrainTransform((crop, crop), **options), data_cache=cache)

    def samples(epoch: int) -> list:
        augmented.set_epoch(epoch)
        return [augmented[index] for index in range(len(augmented))]

    return samples


def resize_first(image: Path, mask: Path, crop: int) -> tuple[Tensor, Tensor]:
    """A sample by torchvision's v2 as its classes do it: the whole image is resized."""
    pixels = tv_tensors.Image(decode_image(str(image), ImageReadMode.RGB))
    labels = tv_tensors.Mask(decode_image(str(mask), ImageReadMode.UNCHANGED))
    fill = {tv_tensors.Image: [round(255 * mean) for mean in MEAN], tv_tensors.Mask: 255}
    transform = v2.Compose(
        [
            v2.ScaleJitter(pixels.shape[-2:], (0.5, 2.0)),
            v2.RandomCrop((crop, crop), pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return transform(pixels, labels)


def crop_first(image: Path, mask: Path, crop: int) -> tuple[Tensor, Tensor]:
    """A sample by torchvision's v2 as fast as it goes: only the crop's own region is resized."""
    pixels = decode_image(str(image), ImageReadMode.RGB)
    labels = decode_image(str(mask), ImageReadMode.UNCHANGED)
    height, width = pixels.shape[-2:]
    scale = float(torch.empty(()).uniform_(0.5, 2.0))
    inner = min(crop, round(height * scale)), min(crop, round(width * scale))
    region = min(height, round(inner[0] / scale)), min(width, round(inner[1] / scale))
    top, left = (int(torch.randint(0, s - r + 1, ())) for s, r in zip((height, width), region, strict=True))
    pixels = v2.functional.resized_crop(pixels, top, left, *region, list(inner))
    labels = v2.functional.resized_crop(labels, top, left, *region, list(inner), v2.InterpolationMode.NEAREST)
    if torch.rand(()) < 0.5:
        pixels, labels = v2.functional.horizontal_flip(pixels), v2.functional.horizontal_flip(labels)
    pixels = v2.functional.normalize(v2.functional.to_dtype(pixels, torch.float32, scale=True), MEAN, STD)
    padding = [0, 0, crop - inner[1], crop - inner[0]]
    return v2.functional.pad(pixels, padding), v2.functional.pad(labels, padding, fill=255)[0].long()


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


def compare_metrics(repeats: int, num_labels: int, dtype: str) -> None:
    """Print the time of `MeanIoU` and of the histograms that evaluate's mean_iou computes for each image."""
    ignore_index = 255 if num_labels < 256 else 65535
    rng = np.random.default_rng(0)
    references = rng.integers(0, num_labels, (64, 513, 513)).astype(dtype)
    references[rng.random(references.shape) < 0.05] = ignore_index
    predictions = rng.integers(0, num_labels, references.shape).astype(dtype)
    metric = MeanIoU(num_labels, ignore_index)
    results = {}

    def ours() -> None:
        results["ours"] = metric.compute(predictions=predictions, references=references)["mean_iou"]

    def histograms() -> None:
        results["histograms"] = mean_iou_by_histograms(predictions, references, num_labels, ignore_index)

    slow, fast = interleaved_medians([histograms, ours], repeats)
    difference = abs(results["ours"] - results["histograms"])
    print(
        f"mean IoU of 64 masks of 513 x 513, {num_labels} classes, {dtype} (difference {difference:.1e}): histograms "
        f"per image {slow * 1e3:.0f} ms, MeanIoU {fast * 1e3:.0f} ms: {slow / fast:.1f} times faster"
    )


def mean_iou_by_histograms(
    predictions: np.ndarray, references: np.ndarray, num_labels: int, ignore_index: int
) -> float:
    """Mean IoU as evaluate's mean_iou defines it: areas of intersection and union from three histograms per image.

    Written from the definition: the evaluate package has no copy of that metric, it is fetched from the Hub.
    """
    areas = np.zeros((3, num_labels))  # intersection, predicted, labelled
    for prediction, reference in zip(predictions, references, strict=True):
        valid = reference != ignore_index
        prediction, reference = prediction[valid], reference[valid]
        for row, ids in enumerate((prediction[prediction == reference], prediction, reference)):
            areas[row] += np.histogram(ids, bins=num_labels, range=(0, num_labels - 1))[0]
    intersection, predicted, labelled = areas
    return float(np.nanmean(intersection / (predicted + labelled - intersection)))


def interleaved_medians(functions: list[Callable[[], None]], repeats: int) -> list[float]:
    """Median processor seconds of each function; they take turns, so that a busy machine disturbs all of them alike."""
    for function in functions:
        function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, durations in zip(functions, seconds, strict=True):
            start = time.process_time()
            function()
            durations.append(time.process_time() - start)
    return [statistics.median(durations) for durations in seconds]


if __name__ == "__main__":
    main()
