"""`count_classes`, `repeat_factors`, `drawn_rows`: draw images with rare classes more often."""

from __future__ import annotations

from collections.abc import Iterable

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .account import masks_of
from .decoding import label_info
from .image_files import UnreadableImageError


def count_classes(
    dataset: datasets.Dataset, rows: Iterable[int] | None = None, num_workers: int = 0, progress: bool = True
) -> np.ndarray:
    """Pixels of each class in each mask, counted by several processes; `count_labels` sums over all masks.

    Args:
        dataset: From `load_segmentation_dataset`.
        rows: Which masks to read, all by default; of the others nothing is counted.
        num_workers: Processes that read them beside this one.
        progress: Whether to show a progress bar.

    Returns:
        (number of rows of the data set, k) int64; pixels without a class are counted nowhere, nor are masks that cannot
        be read.

    Example:
        >>> scenes = load_segmentation_dataset("demo", num_images=3)
        >>> count_classes(scenes).sum(0)  # pixels of each class
    """
    counts = np.zeros((len(dataset), label_info(dataset).num_labels), dtype=np.int64)
    rows = range(len(dataset)) if rows is None else list(rows)
    # A generator of its own: the loader draws a seed for its workers, which must not change what training draws.
    loader = DataLoader(
        _Counts(dataset), batch_size=None, sampler=rows, num_workers=num_workers, generator=torch.Generator()
    )
    bar = tqdm(loader, total=len(rows), desc="Counting the labels", unit="mask", disable=not progress)
    for row, of_mask in zip(rows, bar, strict=True):
        counts[row] = of_mask
    return counts


class _Counts(Dataset):
    """Row -> pixels of each class, (k,)."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.num_labels = label_info(dataset).num_labels
        self.masks = masks_of(dataset)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, row: int) -> np.ndarray:
        try:
            mask = np.asarray(self.masks[row]["annotation"])
        except UnreadableImageError:  # training stops at it, or skips it
            return np.zeros(self.num_labels, dtype=np.int64)
        return np.bincount(mask.ravel(), minlength=self.num_labels)[: self.num_labels]


def repeat_factors(counts: np.ndarray, threshold: float) -> np.ndarray:
    r"""How often each image is to be drawn relative to the others, so that those with rare classes come more often.

    Repeat factor sampling (appendix B of Gupta et al., LVIS: A Dataset for Large Vocabulary Instance Segmentation,
    CVPR 2019, arXiv 1908.03195): with $f_c$ the share of the images that show class c and the threshold t,
    $$r_i = \max_{c \in i} r_c, \quad r_c = \max(1, \sqrt{t / f_c})$$

    Args:
        counts: Pixels of each class in each image, (n, k).
        threshold: t from 0 to 1: classes in a larger share of the images stay as they are. 0 leaves all as they are, 1
            evens out most; 0.001 in the paper, whose classes are far rarer.

    Returns:
        (n,) float64 from 1; 1 for an image without a labelled pixel.

    Example:
        >>> repeat_factors(np.array([[9, 0], [9, 0], [9, 0], [5, 4]]), threshold=1.0)
        array([1., 1., 1., 2.])
    """
    shown = counts > 0
    shares = shown.mean(0)
    factors = np.sqrt(threshold / np.where(shares > 0, shares, 1.0)).clip(min=1.0)
    return np.where(shown, factors, 1.0).max(1, initial=1.0)


def drawn_rows(factors: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch, as many as there are, each about as often as its factor says.

    Of n rows one that has the share e of the factors' sum comes floor(n e) or ceil(n e) times (systematic sampling),
    and n e times in the mean over the epochs. They depend on seed and epoch only.

    Args:
        factors: Factor of each row, (n,), above 0.
        seed: Any integer from 0.
        epoch: Counted from 0.

    Returns:
        (n,) int64 in random order.
    """
    rng = np.random.default_rng((seed, epoch, 0, 1))  # differs from all samples' generators of (seed, epoch, index)
    order = rng.permutation(len(factors))
    ends = np.cumsum(factors[order])
    places = (rng.random() + np.arange(len(factors))) * (ends[-1] / len(factors))
    return rng.permutation(order[np.searchsorted(ends, places, side="right").clip(max=len(factors) - 1)])
