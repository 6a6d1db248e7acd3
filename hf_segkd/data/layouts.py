"""`Layout`: pairs image and mask files in folders as tools and benchmarks arrange them."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files import (
    IMAGE_SUFFIXES,
    MASK_FOLDERS,
    MASK_SUFFIXES,
    canonical_split,
    check_pairs,
    files_by_stem,
    find_root,
    shorten,
)

LAYOUT = "{split}/images and {split}/labels (or masks, annotations), or images/{split} and labels/{split}"
WORD_ENDS = "_- ."
Files = dict[str, str]  # by the name that an image and its mask share: their path in the folder, without suffix


@dataclass(frozen=True)
class Layout:
    """Where the images and masks of a split lie; the arguments of `load_folder` that say so, and their checks.

    Raises:
        ValueError: If `validation_share` or `test_share` is not between 0 and 1, or an argument contradicts it.
    """

    image_dir: str | None = None
    mask_dir: str | None = None
    image_suffix: str = ""
    mask_suffix: str = ""
    split_file: str | None = None
    validation_share: float | None = None
    seed: int = 0
    needs_masks: bool = True
    test_share: float | None = None

    def __post_init__(self) -> None:
        if self.validation_share is None:
            if self.test_share is not None:
                raise ValueError("test_share is cut beside validation_share: give both.")
            return
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be between 0 and 1, got {self.validation_share}.")
        if self.test_share is not None and not 0 < self.test_share < 1 - self.validation_share:
            raise ValueError(
                f"test_share must be between 0 and 1 - validation_share ({1 - self.validation_share:g}), got "
                f"{self.test_share}."
            )
        for option in ("image_dir", "mask_dir", "split_file"):
            if "{split}" in (getattr(self, option) or ""):
                raise ValueError(
                    f"validation_share cuts both splits from the same images, and {option} "
                    f"{getattr(self, option)!r} names others for each split. Leave one out."
                )

    def find(self, data_dir: str | os.PathLike | None, split: str) -> tuple[Files, Files]:
        """Image and mask files of a split, by their common name, sorted; images without a mask where these are allowed.

        Raises:
            ValueError: If folders are missing, the split does not exist, there is no image, or files do not pair up.
        """
        root = find_root(data_dir, ("",), "", LAYOUT)
        if self.validation_share is not None:
            where = "a folder with validation_share" + ("" if self.test_share is None else " and test_share")
            split = canonical_split(split, ("train", "val", *(() if self.test_share is None else ("test",))), where)
        list_file = None if self.split_file is None else _list_file(root, self.split_file, split)
        if list_file is not None and (pairs := _pairs_of_list(list_file, root)):
            images, masks = pairs
        else:
            image_folder, mask_folder, split = self._folders(root, split)
            images, masks = self._files(image_folder, mask_folder)
            where = f"{image_folder} and {mask_folder}"
            ids = sorted(images | masks) if list_file is None else _ids_of_list(list_file, images)
            if list_file is None and not images:
                ending = f"*{self.image_suffix} " if self.image_suffix else ""
                raise ValueError(f"{image_folder} has no images {ending}({', '.join(IMAGE_SUFFIXES)}).")
            check_pairs(images, masks if self.needs_masks else dict.fromkeys(ids), ids, where)
            if not masks:
                raise ValueError(f"{where}: not one of {len(images)} images has a mask *{self.mask_suffix}.")
            images = {name: images[name] for name in ids}
        ids = [*images]
        if self.validation_share is not None:
            ids = _part(ids, split, self.validation_share, self.test_share or 0, self.seed)
        return {name: images[name] for name in ids}, {name: masks[name] for name in ids if name in masks}

    def masks_of_all_splits(self, data_dir: str | os.PathLike | None, split: str) -> list[str]:
        """The mask files of all splits that can be found, sorted; errors as of `find`."""
        root = find_root(data_dir, ("",), "", LAYOUT)
        if self.validation_share is not None:
            others = ["train", "val"] + ([] if self.test_share is None else ["test"])
        else:
            form = self.split_file if "{split}" in (self.split_file or "") else self._image_forms(root)[0]
            others = _splits(root, form) if "{split}" in form else []
        masks = dict.fromkeys(self.find(data_dir, split)[1].values())
        for other in others:
            with contextlib.suppress(ValueError):  # one without masks, say, which is told when it is loaded
                masks |= dict.fromkeys(self.find(data_dir, other)[1].values())
        return sorted(masks)

    def _image_forms(self, root: Path) -> tuple[str, ...]:
        """Where images may lie below `root`, the form that holds first; masks lie by the same forms of {name}."""
        image_dir = self.image_dir or "images"
        if "{split}" in image_dir:
            forms = ("{name}", "{name}/{split}", "{split}/{name}")
        elif self.validation_share is not None or self.split_file is not None:
            forms = ("{name}",)
        else:
            forms = ("{name}/{split}",) if (root / image_dir).is_dir() else ("{split}/{name}",)
        return (forms[0].replace("{name}", image_dir), *forms)

    def _folders(self, root: Path, split: str) -> tuple[Path, Path, str]:
        """Folders of the images and of the masks of a split, and the split's name there."""
        image_form, *forms = self._image_forms(root)
        if "{split}" in image_form:
            splits = [
                name for name in _splits(root, image_form) if (root / image_form.replace("{split}", name)).is_dir()
            ]
            if not splits:
                raise ValueError(
                    f"{root} has no split. Expected layout: {LAYOUT}; or say what lies where (image_dir, mask_dir, "
                    "split_file); or cut the splits from one folder at random, unless its images are frames of a film "
                    "or parts of one photo: --dataset_options "
                    '\'{"validation_share": 0.2, "test_share": 0.2}\', beside other options that there are.'
                )
            split = canonical_split(split, splits, str(root))
        image_folder = root / image_form.replace("{split}", split)
        if not image_folder.is_dir():
            raise ValueError(f"{image_folder} is not a folder; image_dir says where the images lie.")
        names = MASK_FOLDERS if self.mask_dir is None else (self.mask_dir,)
        if "{split}" in names[0]:
            forms = ("{name}",)
        candidates = [root / form.replace("{name}", name).replace("{split}", split) for name in names for form in forms]
        there = [folder for folder in candidates if folder.is_dir()]
        if not there:
            raise ValueError(f"No folder of masks; looked for {', '.join(map(str, candidates))}.")
        # The first with masks in it: Ultralytics keeps polygons in labels/*.txt, beside masks/.
        return image_folder, next(filter(_has_masks, there), there[0]), split

    def _files(self, image_folder: Path, mask_folder: Path) -> tuple[Files, Files]:
        """All images and all masks in two folders, which may be the same one."""
        images = files_by_stem(image_folder, IMAGE_SUFFIXES, self.image_suffix)
        masks = files_by_stem(mask_folder, MASK_SUFFIXES, self.mask_suffix)
        if image_folder == mask_folder:
            if not self.mask_suffix:
                raise ValueError(f"{image_folder} holds images and masks: mask_suffix says how the masks' names end.")
            taken = set(masks.values())
            images = {name: path for name, path in images.items() if path not in taken}
        else:
            _refuse_jpeg_masks(mask_folder, images, masks)
        if not self.image_suffix and not self.mask_suffix and not images.keys() & masks.keys():
            images, masks = _without_ends(images), _without_ends(masks)
        by_file_name = {name + Path(path).suffix: name for name, path in images.items()}  # Supervisely: a.jpg.png
        return images, {name if name in images else by_file_name.get(name, name): path for name, path in masks.items()}


def _without_ends(files: Files) -> Files:
    """Files whose names lack the first and last words that all of them share: img_001_sat, img_002_sat -> 001, 002.

    A word ends at one of "_- .", and a name is left one, so that other files never get the same name.
    """
    if len(files) < 2:
        return files
    first = _common_start([*files])
    last = _common_start([name[::-1] for name in files])[::-1]
    first = first[: max(first.rfind(end) for end in WORD_ENDS) + 1]
    starts = [last.find(end) for end in WORD_ENDS if end in last]
    last = last[min(starts) :] if starts else ""
    cut = {name.removeprefix(first).removesuffix(last): path for name, path in files.items()}
    return cut if len(cut) == len(files) and "" not in cut else files


def _common_start(names: Sequence[str]) -> str:
    one, other = min(names), max(names)  # in between lies what they share
    return next((one[:place] for place, letter in enumerate(one) if other[place : place + 1] != letter), one)


def _has_masks(folder: Path) -> bool:
    return any(name.lower().endswith(MASK_SUFFIXES) for _, _, names in os.walk(folder) for name in names)


def _splits(root: Path, form: str) -> list[str]:
    """What stands for {split} in the paths below `root` that there are, sorted."""
    name = re.escape("{split}")
    pattern = re.escape(str(root / form)).replace(name, "(?P<split>[^/.][^/]*)", 1).replace(name, "(?P=split)")
    paths = glob.glob(glob.escape(str(root / form)).replace("{split}", "*"))
    return sorted(match["split"] for path in paths if (match := re.fullmatch(pattern, path)))


def _list_file(root: Path, form: str, split: str) -> Path:
    """The file that lists a split."""
    if "{split}" in form:
        form = form.replace("{split}", canonical_split(split, _splits(root, form), f"{root / form}"))
    if not (root / form).is_file():
        raise ValueError(f"{root / form} is not a file; split_file names the list of a split's images.")
    return root / form


def _lines(file: Path) -> list[str]:
    lines = [line for line in map(str.strip, file.read_text(encoding="utf-8-sig").splitlines()) if line]
    if not lines:
        raise ValueError(f"{file} names no image.")
    return lines


def _words(line: str) -> list[str]:
    """The words of a line, of which those with spaces are in quotes."""
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|(\S+)', line)]


def _pairs_of_list(file: Path, root: Path) -> tuple[Files, Files] | None:
    """Image and mask files of a list of the paths of both; None where it is one of names."""
    images, masks = {}, {}
    for line in _lines(file):
        paths = [word.lstrip("/") for word in _words(line)]
        if len(paths) != 2 or not all((root / path).is_file() for path in paths):
            return None
        name = os.path.splitext(paths[0])[0]
        images[name], masks[name] = (str(root / path) for path in paths)
    return images, masks


def _ids_of_list(file: Path, images: Files) -> list[str]:
    """The names in a list, which may have file suffixes, and numbers behind them."""
    ids, missing = [], []
    for line in _lines(file):
        names = [name for word in (line, _words(line)[0]) for name in (word, os.path.splitext(word)[0])]
        found = [name for name in names if name in images]
        ids += found[:1]
        missing += [] if found else [line]
    if missing:
        raise ValueError(f"{file}: {len(missing)} of its lines have no image (or mask): {shorten(missing)}.")
    return ids


def _part(ids: Sequence[str], split: str, validation_share: float, test_share: float, seed: int) -> list[str]:
    """The names of a split that is cut from all of them, in their order; "val" is the same with and without "test"."""
    validation, test = round(validation_share * len(ids)), round(test_share * len(ids))
    if not validation or (test_share and not test) or validation + test >= len(ids):
        shares = f"validation_share {validation_share}" + (f" and test_share {test_share}" if test_share else "")
        raise ValueError(
            f"{shares} of {len(ids)} images leave{'' if test_share else 's'} one of the "
            f"{'three' if test_share else 'two'} splits empty."
        )
    order = np.random.default_rng(seed).permutation(len(ids))
    places = {"val": order[:validation], "test": order[validation : validation + test]}
    return [ids[place] for place in sorted(places.get(split, order[validation + test :]))]


def _refuse_jpeg_masks(mask_folder: Path, images: Files, masks: Files) -> None:
    """Reject masks saved as JPEG, the likely cause when all masks seem to be missing."""
    lossy = [path for stem, path in files_by_stem(mask_folder, (".jpg", ".jpeg")).items() if stem in images]
    if lossy and not masks:
        raise ValueError(f"{lossy[0]}: JPEG changes label ids; save the masks as PNG.")
