"""`official_numbers`: the numbers under which a benchmark's server takes the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_segkd.suggestions import did_you_mean

from . import ade20k, cityscapes

# Class -> number: labelIds (cityscapesScripts, labels.py); 1 to 150, where 0 is no class (scene parsing benchmark).
NUMBERINGS = {
    "cityscapes": {name: label_id for name, label_id, _ in cityscapes.CLASSES},
    "ade20k": {name: index + 1 for index, name in enumerate(ade20k.CLASS_NAMES)},
}


def official_numbers(numbering: str, names: Sequence[str]) -> np.ndarray:
    """The number of each class of a network in a benchmark's files, (k,) uint8.

    Args:
        numbering: "cityscapes" or "ade20k".
        names: Names of the network's classes, in order; only the defaults LABEL_0 ... stand for the benchmark's own.

    Raises:
        ValueError: If there is no such numbering, or it has no number for one of the classes.
    """
    if numbering not in NUMBERINGS:
        hint = did_you_mean(numbering, NUMBERINGS)
        raise ValueError(f"There is no numbering {numbering!r}.{hint} There are: {', '.join(NUMBERINGS)}.")
    numbers = NUMBERINGS[numbering]
    if list(names) == [f"LABEL_{index}" for index in range(len(numbers))]:
        names = list(numbers)
    names = [name.strip().lower() for name in names]
    if unknown := [name for name in names if name not in numbers]:
        raise ValueError(
            f"{numbering} has no number for the class {unknown[0]!r} (and {len(unknown) - 1} others of {len(names)}): "
            f"the network was trained on other classes. Those of {numbering} are {', '.join(numbers)}."
        )
    return np.array([numbers[name] for name in names], dtype=np.uint8)
