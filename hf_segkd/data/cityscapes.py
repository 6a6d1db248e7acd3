"""Cityscapes, finely annotated: 19 classes, 2,975 / 500 images of 2048 x 1024."""

from __future__ import annotations

import os

import datasets

from .files import canonical_split, check_num_images, dataset_from_files, files_by_name, find_root, paired_ids
from .labels import IGNORE_INDEX, LabelInfo, LabelScheme

LAYOUT = "leftImg8bit/{train,val}/{city}/*_leftImg8bit.png and gtFine/{train,val}/{city}/*_gtFine_labelIds.png"
SPLIT_SIZES = {"train": 2975, "val": 500}
TRAIN_CITIES = """
    aachen bochum bremen cologne darmstadt dusseldorf erfurt hamburg hanover jena krefeld monchengladbach strasbourg
    stuttgart tubingen ulm weimar zurich
"""
CITIES = {"train": TRAIN_CITIES.split(), "val": ["frankfurt", "lindau", "munster"]}

# Name, number in the labelIds files, colour; in the order of the trainIds (cityscapesScripts, labels.py).
CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
MAX_LABEL_ID = 33

INFO = LabelInfo.from_names("cityscapes", [name for name, _, _ in CLASSES], [colour for _, _, colour in CLASSES])
LABEL_IDS_SCHEME = LabelScheme(
    info=INFO,
    raw_to_id={raw: IGNORE_INDEX for raw in [*range(MAX_LABEL_ID + 1), 255]}  # 255: -1, licence plate, in 8 bits
    | {label_id: train_id for train_id, (_, label_id, _) in enumerate(CLASSES)},
    out_of_range_hint="A labelIds mask holds 0..33 and 255.",
)
TRAIN_IDS_SCHEME = LabelScheme(
    info=INFO,
    raw_to_id={index: index for index in [*range(len(CLASSES)), IGNORE_INDEX]},
    out_of_range_hint="A labelTrainIds mask holds 0..18 and 255: does this file hold labelIds instead of trainIds?",
)


def load_cityscapes(data_dir: str | os.PathLike | None, split: str, *, check_size: bool = True) -> datasets.Dataset:
    """Load a split; the test images have no public labels.

    Reads `*_gtFine_labelTrainIds.png` where every image has one, otherwise `*_gtFine_labelIds.png`, in folders of any
    cities, or in none.

    Args:
        data_dir: Holds `leftImg8bit` and `gtFine`.
        split: "train" or "val" (or "validation").
        check_size: Whether anything but the full 2,975 or 500 images is an error.

    Raises:
        ValueError: If folders or files are missing, or the split does not exist.
    """
    split = canonical_split(split, SPLIT_SIZES, "cityscapes")
    places = ("", "cityscapes")
    image_folder = find_root(data_dir, places, f"leftImg8bit/{split}", LAYOUT) / "leftImg8bit" / split
    mask_folder = find_root(data_dir, places, f"gtFine/{split}", LAYOUT) / "gtFine" / split
    images = files_by_name(image_folder, (".png",), "_leftImg8bit")
    masks, scheme = files_by_name(mask_folder, (".png",), "_gtFine_labelTrainIds"), TRAIN_IDS_SCHEME
    if not masks.keys() >= images.keys():
        masks, scheme = files_by_name(mask_folder, (".png",), "_gtFine_labelIds"), LABEL_IDS_SCHEME
    where = f"cityscapes {split} in {image_folder.parent.parent}"
    ids = paired_ids(images, masks, where, LAYOUT)
    if check_size:
        _check_complete(split, ids, where)
    return dataset_from_files([images[i] for i in ids], [masks[i] for i in ids], ids, scheme, split)


def _check_complete(split: str, ids: list[str], where: str) -> None:
    """Compare with the official number, and name the cities that are missing altogether."""
    missing = sorted(set(CITIES[split]) - {image_id.split("_")[0] for image_id in ids})
    check_num_images(len(ids), SPLIT_SIZES[split], where, f"Missing cities: {', '.join(missing)}." if missing else "")
