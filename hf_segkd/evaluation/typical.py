"""`middle_seed`, `middle_images`: which seed and images a comparison's picture shows, so that nobody picks them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_segkd.evaluation.bootstrap import class_counts, class_ious, nan_mean

NUM_IMAGES = 4


def middle_seed(gains: Sequence[float]) -> int:
    """Place of the seed whose gain is the median; of an even number the lower one of the two in the middle.

    Example:
        >>> middle_seed([5.0, -1.0, 2.0, 3.0])
        2
    """
    return sorted(range(len(gains)), key=gains.__getitem__)[(len(gains) - 1) // 2]


def middle_images(plain: np.ndarray, better: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images in the middle when all are sorted by what they gained.

    Args:
        plain: Confusion matrix of each image by the student alone, (n, k, k).
        better: The same by each method, (m, n, k, k).

    Returns:
        Places of up to four images, by ascending gain, and the gain of each of the n images: the difference of their
        own mIoU in points, mean of the methods; nan for an image without a labelled pixel, which is not shown.

    Example:
        >>> right, wrong = np.array([[4, 0], [0, 4]]), np.array([[0, 4], [4, 0]])
        >>> shown, gains = middle_images(np.array([wrong, right, right]), np.array([[right, wrong, right]]))
        >>> shown.tolist(), gains.tolist()
        ([1, 2, 0], [100.0, -100.0, 0.0])
    """
    ious = [nan_mean(class_ious(class_counts(counts)), -1) for counts in (plain, better)]
    gains = np.where(plain.sum((-2, -1)) > 0, 100 * (ious[1].mean(0) - ious[0]), np.nan)
    order = np.argsort(gains)[: np.isfinite(gains).sum()]
    first = max(0, len(order) // 2 - NUM_IMAGES // 2)
    return order[first : first + NUM_IMAGES], gains


def in_words(shown: np.ndarray, gains: np.ndarray) -> str:
    """Which images these are, for below their picture."""
    points = ", ".join(f"{gains[index]:+.1f}" for index in shown)
    share = 100 * np.mean(gains[np.isfinite(gains)] > 0)
    return f"the images in the middle by gain ({points} points; {share:.0f} % of the images gain)"
