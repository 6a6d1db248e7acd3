"""Pascal Context: 59 classes, or 60 with background; 4,998 / 5,105 images of VOC 2010.

The masks are those of the usual conversion (mmsegmentation's `pascal_context.py`): 0 for background and 1..59 for
the frequent classes of the 459, which it leaves in alphabetical order.
"""

from __future__ import annotations

import os

import datasets

from .ade20k import PALETTE
from .files import (
    canonical_split,
    check_num_images,
    check_pairs,
    dataset_from_files,
    files_by_stem,
    find_root,
    read_list,
)
from .labels import IGNORE_INDEX, LabelInfo, LabelScheme

LAYOUT = "VOCdevkit/VOC2010/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext}"
SPLIT_SIZES = {"train": 4998, "val": 5105}

NAMES = """
    aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair cloth
    computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike mountain
    mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track train
    tree truck tvmonitor wall water window wood
"""
CLASS_NAMES = NAMES.split()

_HINT = "Masks with the 459 original labels must be converted to the 59 frequent ones first."

# There is no official palette; mmsegmentation takes the first colours of ADE20K.
SCHEME_59 = LabelScheme(
    info=LabelInfo.from_names("pascal_context_59", CLASS_NAMES, PALETTE[1:60]),
    raw_to_id={0: IGNORE_INDEX, IGNORE_INDEX: IGNORE_INDEX, **{raw: raw - 1 for raw in range(1, 60)}},
    out_of_range_hint=_HINT,
)
SCHEME_60 = LabelScheme(
    info=LabelInfo.from_names("pascal_context_60", ["background", *CLASS_NAMES], PALETTE[:60]),
    raw_to_id={raw: raw for raw in [*range(60), IGNORE_INDEX]},
    out_of_range_hint=_HINT,
)


def load_pascal_context_59(
    data_dir: str | os.PathLike | None, split: str, *, check_size: bool = True
) -> datasets.Dataset:
    """Load a split with 59 classes; background has no class.

    Args:
        data_dir: `VOC2010`, or a folder that holds it or `VOCdevkit/VOC2010`.
        split: "train" or "val" (or "validation").
        check_size: Whether a list of another length than the official one is an error.

    Raises:
        ValueError: If folders or files are missing, or the split does not exist.
    """
    return _load(data_dir, split, check_size, SCHEME_59)


def load_pascal_context_60(
    data_dir: str | os.PathLike | None, split: str, *, check_size: bool = True
) -> datasets.Dataset:
    """Load a split with 60 classes, of which background is the first; otherwise as `load_pascal_context_59`."""
    return _load(data_dir, split, check_size, SCHEME_60)


def _load(data_dir: str | os.PathLike | None, split: str, require_size: bool, scheme: LabelScheme) -> datasets.Dataset:
    """Pair the images and masks of a split list."""
    name = scheme.info.name
    split = canonical_split(split, SPLIT_SIZES, name)
    root = find_root(data_dir, ("", "VOC2010", "VOCdevkit/VOC2010"), "JPEGImages", f"{LAYOUT}, masks as PNG with 0..59")
    list_file = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    mask_folder = root / "SegmentationClassContext"
    if not list_file.is_file() or not mask_folder.is_dir():
        missing = mask_folder if list_file.is_file() else list_file
        raise ValueError(
            f"{missing} does not exist. Expected layout: {LAYOUT}, as mmsegmentation's conversion makes it."
        )
    ids = read_list(list_file)
    images, masks = files_by_stem(root / "JPEGImages", (".jpg",)), files_by_stem(mask_folder, (".png",))
    where = f"{name} {split} in {root}"
    check_pairs(images, masks, ids, where)
    if require_size:
        check_num_images(len(ids), SPLIT_SIZES[split], where)
    return dataset_from_files([images[i] for i in ids], [masks[i] for i in ids], ids, scheme, split)
