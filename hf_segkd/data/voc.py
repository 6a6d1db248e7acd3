"""Pascal VOC 2012: 21 classes, 1,464 / 1,449 images, and the augmented training list of 10,582."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import datasets

from .files import (
    canonical_split,
    check_num_images,
    check_pairs,
    dataset_from_files,
    files_by_stem,
    find_root,
    read_list,
)
from .labels import IGNORE_INDEX, LabelInfo, LabelScheme, voc_palette

LAYOUT = "VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}"
SPLIT_SIZES = {"train": 1464, "val": 1449, "trainval": 2913}
# 10,582: the 11,355 images of SBD and the 2,913 of VOC, without the 1,449 of VOC's val.
AUG_SPLIT_SIZES = {"train": 10582, "val": 1449}
AUG_LISTS = ("train_aug.txt", "trainaug.txt")

NAMES = """
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
    pottedplant sheep sofa train tvmonitor
"""
CLASS_NAMES = NAMES.split()


def voc_scheme(name: str) -> LabelScheme:
    """Labels of VOC and of its augmented variant: index masks with 0..20 and 255, or masks in their colours."""
    num_classes = len(CLASS_NAMES)
    numbers, colours = [*range(num_classes), IGNORE_INDEX], voc_palette(256)
    return LabelScheme(
        info=LabelInfo.from_names(name, CLASS_NAMES, voc_palette(num_classes)),
        raw_to_id={number: number for number in numbers},
        out_of_range_hint="VOC masks hold 0..20 and 255. Was the palette of the mask replaced by grey levels?",
        colours={colours[number]: number for number in numbers},
    )


def load_voc2012(data_dir: str | os.PathLike | None, split: str, *, check_size: bool = True) -> datasets.Dataset:
    """Load a split by its official list; the test images have no public labels.

    Args:
        data_dir: `VOC2012`, or a folder that holds it or `VOCdevkit/VOC2012`.
        split: "train", "val" (or "validation") or "trainval".
        check_size: Whether a list of another length than the official one is an error.

    Raises:
        ValueError: If folders or files are missing, or the split does not exist.
    """
    split = canonical_split(split, SPLIT_SIZES, "voc2012")
    root = _find_voc(data_dir)
    ids = _read_split_list(root, split)
    return _load(root, "SegmentationClass", "voc2012", split, ids, SPLIT_SIZES[split] if check_size else None)


def load_voc2012_aug(data_dir: str | os.PathLike | None, split: str, *, check_size: bool = True) -> datasets.Dataset:
    """Load VOC with the additional training masks of SBD (Hariharan et al., ICCV 2011).

    Training images are those of `ImageSets/Segmentation/train_aug.txt` (or `trainaug.txt`); without such a list, all
    that have a mask in `SegmentationClassAug` and are not in val. The val split is VOC's own, with VOC's masks.

    Args:
        data_dir: `VOC2012`, or a folder that holds it or `VOCdevkit/VOC2012`.
        split: "train" or "val" (or "validation").
        check_size: Whether another number of images than 10,582 or 1,449 is an error.

    Raises:
        ValueError: If folders or files are missing, or the split does not exist.
    """
    split = canonical_split(split, AUG_SPLIT_SIZES, "voc2012_aug")
    root = _find_voc(data_dir)
    size = AUG_SPLIT_SIZES[split] if check_size else None
    if split == "val":
        return _load(root, "SegmentationClass", "voc2012_aug", split, _read_split_list(root, "val"), size)
    ids = _augmented_ids(root)
    return _load(root, "SegmentationClassAug", "voc2012_aug", split, ids, size)


def _find_voc(data_dir: str | os.PathLike | None) -> Path:
    return find_root(data_dir, ("", "VOC2012", "VOCdevkit/VOC2012"), "JPEGImages", LAYOUT)


def _read_split_list(root: Path, split: str) -> list[str]:
    """Names in an official split list."""
    file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not file.is_file():
        raise ValueError(f"{file} does not exist. Expected layout: {LAYOUT}.")
    return read_list(file)


def _augmented_ids(root: Path) -> list[str]:
    """Names of the augmented training images, from a list or else from the masks there are."""
    for name in AUG_LISTS:
        file = root / "ImageSets" / "Segmentation" / name
        if file.is_file():
            return read_list(file)
    val = set(_read_split_list(root, "val"))
    return [image_id for image_id in _masks(root, "SegmentationClassAug") if image_id not in val]


def _masks(root: Path, folder: str) -> dict[str, str]:
    if not (root / folder).is_dir():
        hint = " (the SBD masks as PNG, the usual SegmentationClassAug.zip)" if folder.endswith("Aug") else ""
        raise ValueError(f"{root / folder}{hint} does not exist. Expected layout: {LAYOUT}.")
    return files_by_stem(root / folder, (".png",))


def _load(
    root: Path, mask_folder: str, name: str, split: str, ids: Sequence[str], expected_size: int | None
) -> datasets.Dataset:
    """Pair the images and masks of a list of names."""
    where = f"{name} {split} in {root}"
    images, masks = files_by_stem(root / "JPEGImages", (".jpg",)), _masks(root, mask_folder)
    check_pairs(images, masks, ids, where)
    if expected_size is not None:
        check_num_images(len(ids), expected_size, where)
    return dataset_from_files([images[i] for i in ids], [masks[i] for i in ids], ids, voc_scheme(name), split)
