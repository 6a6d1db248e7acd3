"""`find_root`, `files_by_stem`, `check_pairs`: find, pair and count the files of a data set before the first epoch."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import datasets

from .decoding import SegmentationDecoder
from .labels import LabelScheme

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        # Decoded by SegmentationDecoder: it names the file in its errors and does not change palette masks.
        "image": datasets.Image(decode=False),
        "annotation": datasets.Image(decode=False),
        "image_id": datasets.Value("string"),
    }
)
MASK_FOLDERS = ("labels", "masks", "annotations")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# Of pictures that are not read: files that would be missed without a word.
OTHER_SUFFIXES = (".avif", ".dcm", ".exr", ".heic", ".heif", ".j2k", ".jp2", ".jxl", ".nii", ".npy", ".ppm", ".raw")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".mat")
SAME_SPLITS = (("val", "validation", "valid"), ("train", "training"))
NUM_SHOWN = 5


def find_root(data_dir: str | os.PathLike | None, places: Sequence[str], needed: str, layout: str) -> Path:
    """The folder of a data set, wherever in the usual tree the user points.

    Args:
        data_dir: The folder that the user gave.
        places: Folders below `data_dir` to look in, e.g. `("", "VOCdevkit/VOC2012")`.
        needed: A folder that must exist there.
        layout: The expected layout, for the message.

    Raises:
        ValueError: If `data_dir` is None, is no folder, or `needed` is in none of the places.
    """
    if data_dir is None:
        raise ValueError(f"data_dir is needed: the folder that holds {layout}.")
    base = Path(data_dir).expanduser().absolute()
    if not base.is_dir():
        raise ValueError(f"data_dir {base} is not a folder. Expected there: {layout}.")
    for place in places:
        if (base / place / needed).is_dir():
            return base / place
    raise ValueError(f"{base} has no folder {needed}. Expected layout: {layout}.")


def canonical_split(split: str, available: Iterable[str], name: str) -> str:
    """The split under the name the data set uses; "val", "validation" and "valid" are the same.

    Raises:
        ValueError: If there is no such split; the message lists the available ones.
    """
    available = list(available)
    for candidate in (split, *(name for names in SAME_SPLITS if split in names for name in names)):
        if candidate in available:
            return candidate
    raise ValueError(f"{name} has no split {split!r}; there are: {', '.join(available) or 'none'}.")


def read_list(file: Path) -> list[str]:
    """Names in a split list, one a line."""
    return [line.split()[0] for line in file.read_text().splitlines() if line.strip()]


def files_by_stem(folder: Path, suffixes: Sequence[str], ending: str = "") -> dict[str, str]:
    """Files of a folder and of the folders in it, by their path there without suffix, sorted.

    Args:
        folder: Where to look; hidden files and folders are left out.
        suffixes: Accepted file suffixes, lower case, with dot.
        ending: What the names of all wanted files end in, with or without a suffix; cut off the names.

    Raises:
        ValueError: If two files have the same name.
    """
    stem_ending, suffix = os.path.splitext(f"x{ending}")
    if suffix.lower() in suffixes:
        suffixes, ending = (suffix.lower(),), stem_ending[1:]
    found: dict[str, str] = {}
    others: Counter[str] = Counter()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = "" if place == str(folder) else Path(place).relative_to(folder).as_posix() + "/"
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)
            others[suffix.lower()] += 1
            if suffix.lower() not in suffixes or not stem.endswith(ending) or file.startswith("."):
                continue
            path = os.path.join(place, file)
            name = below + stem.removesuffix(ending)
            if name in found:
                raise ValueError(f"{found[name]} and {path} have the same name but for the suffix: remove one.")
            found[name] = path
    warn_of_others(folder, others)
    return found


def warn_of_others(folder: Path, suffixes: Mapping[str, int]) -> None:
    """Warn of pictures that are not read.

    Args:
        folder: Where they lie.
        suffixes: Suffix, lower case -> number of its files; those of no pictures are passed over.
    """
    left_out = {suffix: count for suffix, count in suffixes.items() if suffix in OTHER_SUFFIXES}
    if left_out:
        named = ", ".join(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))
        logger.warning(
            f"{folder}: {named} are left out. Pictures are read from {', '.join(IMAGE_SUFFIXES)}; save them as PNG, or "
            "as TIFF where they have many bands."
        )


def files_by_name(folder: Path, suffixes: Sequence[str], ending: str = "") -> dict[str, str]:
    """As `files_by_stem`, by the name without the folders: for data sets whose images have distinct names.

    Raises:
        ValueError: If two files have the same name.
    """
    found: dict[str, str] = {}
    for stem, path in files_by_stem(folder, suffixes, ending).items():
        name = stem.rpartition("/")[2]
        if name in found:
            raise ValueError(f"{found[name]} and {path} have the same name: remove one.")
        found[name] = path
    return found


def check_pairs(images: dict[str, str], masks: dict[str, str], ids: Sequence[str], where: str) -> None:
    """Check that every id has an image and a mask.

    Raises:
        ValueError: If one is missing; the message names the first.
    """
    for kind, files in (("image", images), ("mask", masks)):
        missing = [image_id for image_id in ids if image_id not in files]
        if missing:
            raise ValueError(f"{where}: {len(missing)} of {len(ids)} have no {kind}: {shorten(missing)}.")


def paired_ids(images: dict[str, str], masks: dict[str, str], where: str, layout: str) -> list[str]:
    """The names that images and masks share, sorted.

    Raises:
        ValueError: If there is none, or an image or a mask of one is missing.
    """
    ids = sorted(images | masks)
    if not ids:
        raise ValueError(f"{where}: found neither an image nor a mask. Expected layout: {layout}.")
    check_pairs(images, masks, ids, where)
    return ids


def check_num_images(found: int, expected: int, where: str, missing: str = "") -> None:
    """Check that an official split is complete.

    Args:
        found: Number of images found.
        expected: Number of images of the official split.
        where: Data set, split and the place it was read from.
        missing: What is missing, where that is known.

    Raises:
        ValueError: If the numbers differ.
    """
    if found != expected:
        raise ValueError(
            f"{where}: found {found} images, the official split has {expected}.{' ' + missing if missing else ''} "
            "Pass check_size=False to go on with what is there."
        )


def shorten(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:NUM_SHOWN]) + (", ..." if len(names) > NUM_SHOWN else "")


def numbered(dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set with a column `image_id`: its own, or split and number of the row."""
    if "image_id" in dataset.column_names:
        return dataset
    return dataset.add_column("image_id", [f"{dataset.split or 'image'}_{row:06d}" for row in range(len(dataset))])


def dataset_from_files(
    images: Sequence[str], masks: Sequence[str | None], image_ids: Sequence[str], scheme: LabelScheme, split: str
) -> datasets.Dataset:
    """A data set of paths, None where a mask is missing; the files are decoded and checked when a row is read.

    Nothing is cached on disk, so a changed folder is never served from an old copy.
    """
    rows = {"image": list(images), "annotation": list(masks), "image_id": list(image_ids)}
    return dataset_from_rows(rows, scheme, split)


def dataset_from_rows(rows: dict[str, list], scheme: LabelScheme, split: str) -> datasets.Dataset:
    """A data set of the columns of `FEATURES`, whose pictures are paths or `{"path": ..., "bytes": ...}`."""
    dataset = datasets.Dataset.from_dict(rows, features=FEATURES, split=datasets.Split(split))
    dataset.set_transform(SegmentationDecoder(scheme))
    return dataset
