"""One function for all data sets."""

from __future__ import annotations

import difflib
import os

import datasets

from .demo import load_demo
from .folder import load_folder

LOADERS = {
    "folder": load_folder,
    "demo": load_demo,
}


def load_segmentation_dataset(
    name: str,
    data_dir: str | os.PathLike | None = None,
    split: str = "train",
    *,
    hub_id: str | None = None,
    **options: object,
) -> datasets.Dataset:
    """Load a split."""
    if name not in LOADERS:
        nearest = difflib.get_close_matches(name, LOADERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"Unknown data set {name!r}, did you mean {nearest!r}? There are: {', '.join(LOADERS)}.")
    return LOADERS[name](data_dir, split, **options)
