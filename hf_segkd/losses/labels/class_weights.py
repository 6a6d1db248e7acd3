"""`class_weights`: from the number of pixels of each class to the weight of each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from hf_segkd.losses.base import require_choice

ClassWeighting = Literal["inverse", "sqrt", "effective"]
WEIGHTINGS: tuple[str, ...] = get_args(ClassWeighting)


def class_weights(
    counts: Sequence[int] | np.ndarray | Tensor, kind: ClassWeighting, beta: float | None = None
) -> list[float]:
    r"""Weights that make up for how rare a class is; their mean over the classes that occur is 1.

    With $n_c$ pixels of class c, the weight is proportional to

    - `inverse`: $1 / n_c$, all classes count alike;
    - `sqrt`: $1 / \sqrt{n_c}$, half way there on a logarithmic scale;
    - `effective`: $(1 - \beta) / (1 - \beta^{n_c})$, one over the effective number of samples (eq. 2 and section 4 of
      Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, arXiv 1901.05555): like `inverse`
      for rare classes and constant for those of more than about $1 / (1 - \beta)$ pixels.

    Args:
        counts: n_c, (k,), whole numbers from 0.
        kind: See above.
        beta: Of `effective`, above 0 and below 1. The paper's 0.9 to 0.9999 are for thousands of images: with
            millions of pixels all weights would be equal. By default 1 - 1/N, as in the paper, with N the mean count.

    Returns:
        k weights. A class that never occurs gets 1; only label smoothing reads it.

    Raises:
        ValueError: If no class occurs, a count is negative, or kind or beta is none of those above.

    Example:
        >>> class_weights([300, 100], "inverse")
        [0.5, 1.5]
        >>> class_weights([900, 100], "sqrt")
        [0.5, 1.5]
    """
    require_choice("class_weights", kind, WEIGHTINGS)
    numbers = np.asarray(counts, dtype=np.float64)
    if numbers.ndim != 1 or not numbers.sum() > 0 or (numbers < 0).any():
        raise ValueError(f"Class weights need the pixels of each class, some of them above 0; got {numbers.tolist()}.")
    if beta is not None and (kind != "effective" or not 0 < beta < 1):
        raise ValueError(f"beta is for 'effective', above 0 and below 1; got {beta} with {kind!r}.")
    occurs = numbers > 0
    weights = np.ones_like(numbers)
    weights[occurs] = 1 / _effective_numbers(numbers[occurs], kind, beta)
    weights[occurs] /= weights[occurs].mean()
    return weights.tolist()


def _effective_numbers(counts: np.ndarray, kind: str, beta: float | None) -> np.ndarray:
    if kind == "inverse":
        return counts
    if kind == "sqrt":
        return np.sqrt(counts)
    log_beta = math.log(beta) if beta is not None else math.log1p(-1 / max(counts.mean(), 2.0))
    return np.expm1(counts * log_beta) / math.expm1(log_beta)


def check_class_weights(weights: Sequence[float], num_labels: int) -> None:
    """Refuse weights that are not one for each class.

    Raises:
        ValueError: If their number is another, one is negative or not finite, or all are 0.
    """
    if len(weights) != num_labels:
        raise ValueError(f"class_weights has {len(weights)} numbers, and the student has {num_labels} classes.")
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(f"class_weights must be 0 or more, finite, and not all 0; got {list(weights)}.")
