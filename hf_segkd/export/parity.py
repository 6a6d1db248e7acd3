"""`Parity`: compares an exported network with the original on real images; random ones would hide differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_segkd.data import EvaluationDataset
from hf_segkd.evaluation.metrics import MeanIoU
from hf_segkd.evaluation.reports import table
from hf_segkd.networks.inference import logits_at

from .latency import peak_cell
from .runtimes import Network

MIN_AGREEMENT = 0.999
MAX_MIOU_DIFFERENCE = 0.0005


@dataclass(frozen=True)
class Parity:
    """Two networks on the same images.

    Attributes:
        images: Number of images.
        max_logit_difference: Largest absolute difference of two logits; None where only masks can be compared.
        argmax_agreement: Share of the pixels, at the networks' resolution, that both give the same class.
        miou: Mean IoU of the first network, 0 to 1, at the labels' resolution: of its logits resized, which is what
            evaluation gives, or of its masks resized as pictures.
        miou_exported: That of the second one.
    """

    images: int
    max_logit_difference: float | None
    argmax_agreement: float
    miou: float
    miou_exported: float


def compare(
    network: Network, exported: Network, samples: EvaluationDataset, num_labels: int, batch_size: int = 1
) -> Parity:
    """Run both networks on all samples.

    Args:
        network: The reference.
        exported: The network that must agree with it.
        samples: Whole images with labels at their own resolution; images of one size if they go in batches.
        num_labels: Number of classes.
        batch_size: Images at a time.
    """
    scores = MeanIoU(num_labels), MeanIoU(num_labels)
    same, pixels = 0, 0
    difference = torch.tensor(0.0)
    for start in range(0, len(samples), batch_size):
        batch = [samples[index] for index in range(start, min(start + batch_size, len(samples)))]
        images = torch.stack([sample["pixel_values"] for sample in batch])
        with torch.inference_mode():
            outputs = network(images), exported(images)
        masks = [output.argmax(dim=1) if output.is_floating_point() else output for output in outputs]
        same += int((masks[0] == masks[1]).sum())
        pixels += masks[0].numel()
        if outputs[0].is_floating_point():
            difference = torch.maximum(difference, (outputs[0] - outputs[1]).abs().max())
        for score, output in zip(scores, outputs, strict=True):
            for row, sample in zip(output, batch, strict=True):
                score.update(classes_at(row, tuple(sample["labels"].shape)), sample["labels"])
    return Parity(
        images=len(samples),
        max_logit_difference=difference.item() if outputs[0].is_floating_point() else None,
        argmax_agreement=same / pixels,
        miou=scores[0].compute()["mean_iou"],
        miou_exported=scores[1].compute()["mean_iou"],
    )


def classes_at(output: Tensor, size: tuple[int, int]) -> Tensor:
    """Class of each pixel at another size: resized logits (k, h, w), or the nearest pixel of a mask (h, w)."""
    if output.is_floating_point():
        return logits_at(output[None], size)[0].argmax(dim=0)
    return F.interpolate(output[None, None], size=size, mode="nearest-exact")[0, 0]


def check_parity(parity: Parity, what: str) -> None:
    """Make sure that an exported network may be used in place of the original.

    Raises:
        ValueError: If fewer than 99.9 % of the pixels have the same class, the mean IoU differs by more than 0.05
            points, or logits are not finite; with the numbers.
    """
    same_classes = parity.argmax_agreement >= MIN_AGREEMENT
    same_score = abs(parity.miou - parity.miou_exported) <= MAX_MIOU_DIFFERENCE  # False for nan, too
    finite = parity.max_logit_difference is None or math.isfinite(parity.max_logit_difference)
    if not (same_classes and same_score and finite):
        raise ValueError(
            f"{what} is not the network it was made from, so it was not kept: on {parity.images} images "
            f"{100 * parity.argmax_agreement:.3f} % of the pixels have the same class (need "
            f"{100 * MIN_AGREEMENT:g} %), mIoU is {100 * parity.miou_exported:.3f} % instead of "
            f"{100 * parity.miou:.3f} % (may differ by {100 * MAX_MIOU_DIFFERENCE:g}), the largest difference of "
            f"logits is {parity.max_logit_difference}."
        )


def check_int8_loss(parity: Parity, what: str, allowed: float) -> None:
    """Make sure that a quantised network costs no more than `allowed` points of mean IoU.

    Raises:
        ValueError: If it costs more, with the numbers, or if its logits are not finite.
    """
    difference = parity.max_logit_difference
    if difference is not None and not math.isfinite(difference):
        raise ValueError(f"{what} in int8 gives logits that are not finite. Calibrate on more images, or leave --int8.")
    loss = 100 * (parity.miou - parity.miou_exported)
    if not loss <= allowed:  # not so for nan, too
        raise ValueError(
            f"{what} in int8 costs {loss:.2f} points of mIoU ({100 * parity.miou:.2f} to "
            f"{100 * parity.miou_exported:.2f} % on {parity.images} images, {100 * parity.argmax_agreement:.2f} % of "
            f"the pixels alike), and --max_int8_loss allows {allowed:g}, so nothing was written. Calibrate on more "
            "images, or export without --int8."
        )


def other_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Odd (height, width) that a network for any size is tried on: larger one way, smaller the other."""
    larger, smaller = (lambda side: 5 * side // 4 | 1), (lambda side: 3 * side // 4 | 1)
    return [(larger(height), smaller(width)), (smaller(height), larger(width))]


def worst_of(first: Parity, second: Parity) -> Parity:
    """The mean IoU of the first with the larger deviations of both."""
    differences = [part.max_logit_difference for part in (first, second)]
    return replace(
        first,
        max_logit_difference=None if None in differences else max(differences),
        argmax_agreement=min(first.argmax_agreement, second.argmax_agreement),
    )


def exports_table(exports: list[dict[str, Any]], latency: dict[str, Any] | None = None) -> str:
    """What was exported and how close it is, from the "exports" of export.json, with its times if they are given."""
    header = ["file", "runtime", "precision", "MB"]
    header += ["images", "max logit diff.", "same class %", "mIoU %", "exported mIoU %"]
    times = {row["runtime"]: row for row in (latency or {"rows": []})["rows"] if row["network"] == "student"}
    if latency is not None:
        header += ["median ms", "95th percentile ms", "peak MB"]
    rows = []
    for export in exports:
        row = [export["file"], export["runtime"], export["precision"], f"{export['file_mb']:.2f}"]
        row += ["not run", "-", "-", "-", "-"] if export["parity"] is None else _parity_cells(export["parity"])
        if latency is not None:
            time = times.get(export["runtime"])
            numbers = ["-", "-"] if time is None else [f"{time[key]:.2f}" for key in ("median_ms", "p95_ms")]
            row += [*numbers, peak_cell(time or {})]
        rows.append(row)
    return table(header, rows)


def _parity_cells(parity: dict[str, Any]) -> list[str]:
    difference = parity["max_logit_difference"]
    return [
        str(parity["images"]),
        "-" if difference is None else f"{difference:.1e}",
        f"{100 * parity['argmax_agreement']:.3f}",
        f"{100 * parity['miou']:.2f}",
        f"{100 * parity['miou_exported']:.2f}",
    ]
