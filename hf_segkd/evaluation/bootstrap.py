"""`paired_gain`: what a method gained over its baseline, with a 95 % interval over seeds and images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Resamples of the interval; its ends are then known to about a twentieth of its length.
DRAWS = 2000
QUANTILES = (0.025, 0.975)
NORMAL_QUANTILE = 1.96
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Gain:
    """A gain in mIoU, in points.

    Attributes:
        mean: Mean over the seeds.
        low: Lower end of its 95 % interval.
        high: Upper end.
        of_seeds: The gain of each seed.
        of_classes: Gain in IoU of each class, its mean and both ends, (k, 3); nan for a class that is nowhere.
        seeds_needed: Seeds with which the interval would leave 0 out, if the mean and both spreads stayed as they are;
            None where it is not known, from one seed, or 1000 would not do, as where the images alone spread more.
    """

    mean: float
    low: float
    high: float
    of_seeds: list[float]
    of_classes: np.ndarray
    seeds_needed: int | None

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def class_counts(counts: np.ndarray) -> np.ndarray:
    """Right, labelled and predicted pixels of each class: (..., k, k) -> (..., 3, k) float64.

    Example:
        >>> class_counts(np.array([[3, 1], [0, 2]])).tolist()
        [[3.0, 2.0], [4.0, 2.0], [3.0, 3.0]]
    """
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    return np.stack((right, counts.sum(-1), counts.sum(-2)), axis=-2).astype(np.float64)


def class_ious(counts: np.ndarray) -> np.ndarray:
    """IoU of each class from `class_counts` summed over images: (..., 3, k) -> (..., k); nan where it is nowhere."""
    right, labelled, predicted = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore"):
        return right / (labelled + predicted - right)


def paired_gain(method: np.ndarray, baseline: np.ndarray, draws: int = DRAWS) -> Gain:
    """The mean gain in mIoU over the seeds, with its interval.

    The bootstrap draws images and, apart from them, seeds with replacement, the same for both sides, and takes the
    2.5 % and 97.5 % quantiles of the gain. How far the drawn seeds' mean lies from that of all is stretched by
    `stretch`, since a handful of seeds drawn from themselves vary too little: three that all gain, as they do by chance
    one time in eight, would always give an interval above 0. With one seed the interval is over the images alone. It
    draws from a generator of its own, always the same.

    Args:
        method: `class_counts` of each seed and image, (s, n, 3, k).
        baseline: The same of the baseline, same seeds and images.
        draws: Number of resamples.

    Raises:
        ValueError: If the two differ in seeds, images or classes.

    Example:
        >>> plain = class_counts(np.array([[[[6, 2], [2, 6]], [[4, 4], [4, 4]]]]))  # one seed, two images
        >>> better = class_counts(np.array([[[[7, 1], [1, 7]], [[4, 4], [4, 4]]]]))
        >>> gain = paired_gain(better, plain)
        >>> [round(value, 2) for value in (gain.mean, gain.low, gain.high)]
        [6.93, 0.0, 17.78]
    """
    if method.shape != baseline.shape:
        raise ValueError(
            f"A gain needs the same seeds, images and classes on both sides; got counts of shape {method.shape} and "
            f"{baseline.shape}."
        )
    seeds, images = method.shape[:2]
    generator = np.random.default_rng(0)
    weights = generator.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)
    drawn = generator.integers(seeds, size=(draws, seeds))
    whole = np.ones((1, images))
    of_seeds, of_classes = (100 * part[:, 0] for part in differences(method, baseline, whole))
    gains, class_gains = (100 * part for part in differences(method, baseline, weights))
    low, high = np.quantile(resampled_means(gains, drawn), QUANTILES)
    return Gain(
        mean=float(of_seeds.mean()),
        low=float(low),
        high=float(high),
        of_seeds=of_seeds.tolist(),
        of_classes=_with_ends(of_classes, class_gains, drawn),
        seeds_needed=_seeds_needed(of_seeds, gains),
    )


def differences(method: np.ndarray, baseline: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains in mIoU, (s, d), and in IoU, (s, d, k), of each seed with each of the images' weights (d, n); 0 to 1."""
    sides = []
    for counts in (method, baseline):
        seeds, images, _, classes = counts.shape
        summed = weights @ counts.reshape(seeds, images, 3 * classes)
        sides.append(class_ious(summed.reshape(seeds, len(weights), 3, classes)))
    better, plain = sides
    return nan_mean(better, -1) - nan_mean(plain, -1), better - plain


def resampled_means(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Mean over the seeds plus the stretched distance of the drawn seeds' mean: (s, d), seeds (d, s) -> (d,)."""
    mean = values.mean(0)
    return mean + stretch(len(values)) * (np.take_along_axis(values.T, drawn, axis=1).mean(1) - mean)


def stretch(seeds: int) -> float:
    """What makes a bootstrap of so many values as wide as Student's interval of their mean; 1 for one value.

    The variance of values drawn from s is (s - 1) / s of what it should be, and the quantile the normal one in place
    of that of t with s - 1 degrees of freedom (Hesterberg, 2015, "What Teachers Should Know about the Bootstrap").

    Example:
        >>> [round(stretch(seeds), 2) for seeds in (1, 3, 5, 100)]
        [1.0, 2.69, 1.58, 1.02]
    """
    return 1.0 if seeds == 1 else math.sqrt(seeds / (seeds - 1)) * t_quantile(seeds - 1) / NORMAL_QUANTILE


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t; beyond 10 degrees of freedom by two terms of its expansion, to 0.003."""
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    return NORMAL_QUANTILE + 2.372 / freedom + 2.823 / freedom**2


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is not nan, nan where all is; NumPy's warns of that."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis) / known.sum(axis)


def _with_ends(of_classes: np.ndarray, class_gains: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Mean and both ends for each class."""
    rows = []
    for index in range(of_classes.shape[1]):
        resampled = resampled_means(class_gains[:, :, index], drawn)
        resampled = resampled[np.isfinite(resampled)]  # a rare class is missing in some resamples
        ends = np.quantile(resampled, QUANTILES) if resampled.size else (np.nan, np.nan)
        rows.append([nan_mean(of_classes[:, index], 0), *ends])
    return np.array(rows)


def _seeds_needed(of_seeds: np.ndarray, gains: np.ndarray) -> int | None:
    """The fewest seeds s with mean^2 > (t quantile)^2 variance of seeds / s + (normal quantile)^2 that of images."""
    if len(of_seeds) < 2:
        return None
    left = of_seeds.mean() ** 2 - NORMAL_QUANTILE**2 * np.nanvar(gains.mean(0))
    variance = of_seeds.var(ddof=1)
    enough = (seeds for seeds in range(2, MOST_SEEDS) if t_quantile(seeds - 1) ** 2 * variance / seeds < left)
    return next(enough, None)
