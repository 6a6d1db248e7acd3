"""`load_segmentation_dataset`: loads any of the data sets."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial

import datasets

from hf_segkd.suggestions import did_you_mean

from .ade20k import load_ade20k
from .cityscapes import load_cityscapes
from .decoding import with_stored_channels
from .demo import load_demo
from .folder import load_folder
from .hub import load_folder_from_hub, load_official_from_hub
from .pascal_context import load_pascal_context_59, load_pascal_context_60
from .voc import load_voc2012, load_voc2012_aug

LOADERS: dict[str, Callable[..., datasets.Dataset]] = {
    "voc2012": load_voc2012,
    "voc2012_aug": load_voc2012_aug,
    "cityscapes": load_cityscapes,
    "ade20k": load_ade20k,
    "pascal_context_59": load_pascal_context_59,
    "pascal_context_60": load_pascal_context_60,
    "folder": load_folder,
    "demo": load_demo,
}


def load_segmentation_dataset(
    name: str,
    data_dir: str | os.PathLike | None = None,
    split: str = "train",
    *,
    hub_id: str | None = None,
    num_channels: int | None = None,
    **options: object,
) -> datasets.Dataset:
    """Load a split of a data set; files are found and counted now, decoded and checked when a row is read.

    Args:
        name: "voc2012", "voc2012_aug", "cityscapes", "ade20k", "pascal_context_59", "pascal_context_60", "folder"
            for your own images and masks, or "demo" for generated scenes.
        data_dir: Folder with the data set in its official layout. Not for "demo".
        split: "train", "val" (or "validation"), and what else the data set has, e.g. "trainval" of VOC.
        hub_id: Take a copy on the Hub instead of `data_dir`, e.g. "merve/scene_parse_150" for "ade20k",
            "nateraw/pascal-voc-2012" for "voc2012", "Chris1/cityscapes" for "cityscapes".
        num_channels: Read images as they are stored, with so many bands and all their bits, as `MultiBandImage`; all
            must have that number. By default they are read as RGB of 8 bits.
        **options: `check_size=False` accepts an incomplete official split. "folder" takes `classes`, and what says how
            masks are read and where files lie (see `load_folder`); copies on the Hub take `image_column` and
            `mask_column`; "demo" takes `num_images`, `image_size`, `num_classes` and `seed` (see `load_demo`).

    Returns:
        A data set with columns `image` (PIL RGB, or all bands), `annotation` (PIL "L" of class ids 0..k-1, and 255
        where there is no class; with more than 255 classes "I;16" and 65535) and `image_id`. `label_info` gives its
        class names and colours; `check_dataset` reads it through.

    Raises:
        ValueError: If the name, the split or an option is unknown, or files are missing or do not pair up.

    Example:
        >>> from hf_segkd import load_segmentation_dataset
        >>> scenes = load_segmentation_dataset("demo", split="val", num_classes=4, num_images=2)
        >>> scenes.column_names, scenes[0]["image"].size, scenes[0]["annotation"].mode
        (['image', 'annotation', 'image_id'], (128, 96), 'L')
    """
    if name not in LOADERS:
        raise ValueError(f"Unknown data set {name!r}.{did_you_mean(name, LOADERS)} There are: {', '.join(LOADERS)}.")
    loader, place = LOADERS[name], data_dir
    if hub_id is not None:
        if data_dir is not None or name == "demo":
            raise ValueError(f"hub_id {hub_id!r} replaces data_dir and is not for the demo set; give one of the two.")
        loader = load_folder_from_hub if name == "folder" else partial(load_official_from_hub, name)
        place = hub_id
    _check_options(name, loader, options)
    return with_stored_channels(loader(place, split, **options), num_channels)


def _check_options(name: str, loader: Callable[..., datasets.Dataset], options: dict[str, object]) -> None:
    """Raise for an option that the loader does not know, or one that it needs and did not get."""
    parameters = inspect.signature(loader).parameters.values()
    known = {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known)
            raise ValueError(f"Data set {name!r} has no option {option!r}.{hint} It has: {', '.join(known)}.")
    for option, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(
                f"Data set {name!r} needs the option {option!r} (docs/data.md): {option}=... in Python, "
                f"--dataset_options '{{\"{option}\": ...}}' on the command line."
            )
