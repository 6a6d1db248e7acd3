"""`write_image_counts`, `read_image_counts`: the confusion matrix of each image of a data set, as an .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_image_counts(path: Path, counts: np.ndarray, image_ids: Sequence[str]) -> None:
    """Write a confusion matrix for each image.

    Args:
        path: The file, with the suffix .npz.
        counts: Pixels, (n, k * k) or (n, k, k): rows are the truth, columns the prediction.
        image_ids: Name of each image.

    Raises:
        ValueError: If the path has another suffix, or an image has no name.
    """
    if path.suffix != ".npz":
        raise ValueError(f"Counts of images are written as .npz, got {path}.")
    if len(counts) != len(image_ids):
        raise ValueError(f"Got {len(counts)} matrices for {len(image_ids)} images.")
    num_labels = round(np.prod(counts.shape[1:]) ** 0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    matrices = np.asarray(counts).reshape(-1, num_labels, num_labels)
    np.savez_compressed(path, image_ids=np.asarray(list(image_ids), dtype=str), counts=matrices.astype(np.uint32))


def read_image_counts(path: Path) -> tuple[list[str], np.ndarray]:
    """The names of the images, and their matrices (n, k, k) int64, of `write_image_counts`."""
    with np.load(path) as file:
        return file["image_ids"].tolist(), file["counts"].astype(np.int64)
