"""`find_classes`: the classes of a folder whose user names none: from its class file, else counted in its masks."""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .class_files import read_classes
from .image_files import UnreadableImageError, open_image
from .labels import IGNORE_INDEX
from .mask_ids import BYTE_MODES, COLOUR_MODES, WIDE_MODES
from .mat_files import read_mat

logger = logging.getLogger(__name__)

CLASS_FILES = (
    *("classes.json", "classes.txt", "classes.yaml", "classes.csv", "_classes.csv", "class_dict.csv", "labelmap.txt"),
    *("label_colors.txt", "class_names.txt", "labels.txt", "meta.json", "data.yaml", "dataset_meta.json"),
)
MOST_CLASSES = 64  # more numbers or colours than that are hardly classes that nobody has named
MOST_INSTANCES = 8  # from more numbers on, masks that all count from the lowest one are taken for numbered objects
FEW_TO_SHOW = 8
_told: set[str] = set()


def find_classes(folder: Path, masks: Sequence[str]) -> dict[str, Any]:
    """What `classes` and, where needed, `ids` of `load_folder` would be; told in a warning, with the line to type.

    Args:
        folder: The data set's folder.
        masks: Its mask files, those of all splits: a rare class may be missing in one.

    Raises:
        ValueError: If the folder has several class files, or what the masks hold can be read in more than one way: the
            message says what to type for each.
    """
    files = [folder / name for name in CLASS_FILES if (folder / name).is_file()]
    if len(files) > 1:
        named = ", ".join(file.name for file in files)
        raise ValueError(f"{folder} has several class files: {named}. Say which: {_flag({'classes': files[0].name})}")
    if files:
        names = ", ".join(read_classes(files[0]).names)
        _tell_once(f"classes: those of {files[0]}: {names}.")
        return {"classes": str(files[0])}
    stamps = tuple((mask, Path(mask).stat().st_mtime_ns) for mask in masks)
    options, meaning = _counted(str(folder), stamps)
    _tell_once(
        f"{folder}: no classes are named, and its {len(masks)} masks hold {meaning}. To name them, or if that is "
        f"wrong, change this: {_flag(options)}"
    )
    return options


def ids_of_binary(folder: Path, names: Sequence[str], masks: Sequence[str]) -> dict[int, int] | None:
    """`ids` for two named classes where all masks hold 0 and 255 alone, told in a warning; None for other masks.

    Masks are read until one holds another number, which most often is the first.
    """
    found: set[Any] = set()
    for mask in masks:
        try:
            found |= {_as_number(value) for value in _values(mask)}
        except ValueError:  # training tells of it
            return None
        if not found <= {0, IGNORE_INDEX}:
            return None
    if found != {0, IGNORE_INDEX}:
        return None
    _tell_once(
        f"{folder}: all {len(masks)} masks hold 0 and 255 alone: 255 is taken for {names[1]!r} and not for no "
        'class, as with the option "ids": {"0": 0, "255": 1}.'
    )
    return {0: 0, IGNORE_INDEX: 1}


@functools.lru_cache(maxsize=8)  # the splits of a data set are loaded one after the other
def _counted(folder: str, masks: tuple[tuple[str, int], ...]) -> tuple[dict[str, Any], str]:
    """The options that the masks ask for, and what they hold in words."""
    found: Counter[Any] = Counter()  # number, or colour -> masks with it
    in_masks = []
    for mask, _ in tqdm(masks, desc="Reading the masks for their classes", unit="mask", leave=False):
        try:
            in_masks.append(_values(mask))
        except UnreadableImageError:
            continue  # loading or training tells of it
        found.update(in_masks[-1])
        if len(found) > 100 * MOST_CLASSES:
            break
    colours = {value for value in found if isinstance(value, tuple)}
    if any(len({*colour}) > 1 for colour in colours):
        return _of_colours(folder, found)
    numbers = sorted({_as_number(value) for value in found})
    _refuse_instances(folder, numbers, in_masks)
    return _of_numbers(folder, numbers)


def _tell_once(message: str) -> None:
    """Warn once in a process: each split of a data set finds the same."""
    if message not in _told:
        _told.add(message)
        logger.warning(message)


def _as_number(value: Any) -> Any:
    """The number that three equal channels stand for; others as they are."""
    return value[0] if isinstance(value, tuple) and len({*value}) == 1 else value


def _values(mask: str) -> set[int] | set[tuple[int, int, int]]:
    """The numbers of a mask, or where it is a picture in colours, these."""
    if mask.lower().endswith(".mat"):
        return _whole(read_mat(mask, mask))
    picture = open_image(mask, mask)
    if picture.mode in COLOUR_MODES:
        colours = picture.convert("RGB").getcolors(maxcolors=100 * MOST_CLASSES)
        if colours is None:
            raise ValueError(
                f"{mask} holds thousands of colours: it is a picture and no mask, or it was smoothed or saved as JPEG. "
                "Masks need one colour or number for each class; mask_dir says where they lie."
            )
        return {colour for _, colour in colours}
    if picture.mode in BYTE_MODES:
        numbers = Image.fromarray(np.asarray(picture).astype(np.uint8, copy=False))
        return set(np.flatnonzero(numbers.histogram()).tolist())
    if picture.mode not in WIDE_MODES:
        raise ValueError(f"{mask}: the mask has mode {picture.mode}, need one channel of class ids, or colours in RGB.")
    return _whole(np.asarray(picture))


def _whole(pixels: np.ndarray) -> set[Any]:
    """The numbers in an array; whole ones as integers."""
    return {int(value) if float(value).is_integer() else value for value in np.unique(pixels).tolist()}


def _of_numbers(folder: str, numbers: list[int]) -> tuple[dict[str, Any], str]:
    classes = [number for number in numbers if number != IGNORE_INDEX]
    shown = _some(numbers)
    if numbers == [0, IGNORE_INDEX]:
        options = {"classes": ["background", "foreground"], "ids": {"0": 0, "255": 1}}
        return options, "0 and 255 alone, so 255 is a class here, and no pixel is without one"
    if len(numbers) < 2:
        raise ValueError(
            f"{folder}: all masks hold the number {shown} and no other, so there is nothing to learn. Do the masks lie "
            "elsewhere (mask_dir)?"
        )
    if len(numbers) > MOST_CLASSES or any(number != int(number) or number < 0 for number in numbers):
        raise ValueError(
            f"{folder}: no classes are named, and the masks hold {len(numbers)} different numbers ({shown}). Are these "
            f"numbered objects instead of classes, or were the masks smoothed? If they are classes, name them: "
            f"{_flag({'classes': ['NAME', 'NAME', '...']})}"
        )
    if IGNORE_INDEX not in numbers:
        return {"classes": _names(classes)}, f"the numbers {shown}, each a class"
    first = classes[0]
    if len(classes) > 1 and first in (0, 1) and classes == [*range(first, first + len(classes))]:
        return {"classes": _names(classes)}, f"the numbers {shown}: 255 is no class, each other one is"
    every = {str(number): index for index, number in enumerate(numbers)}
    as_class = {"classes": [f"class {number}" for number in numbers], "ids": every}
    raise ValueError(
        f"{folder}: no classes are named, and the masks hold the numbers {shown}, of which 255 may be a class or mean "
        f"no class. If it is a class: {_flag(as_class)}\nIf it is none: {_flag({'classes': _names(classes)})}"
    )


def _of_colours(folder: str, found: Counter[Any]) -> tuple[dict[str, Any], str]:
    colours = sorted(value if isinstance(value, tuple) else (value,) * 3 for value in found)
    if len(colours) > MOST_CLASSES:
        raise ValueError(
            f"{folder}: no classes are named, and the masks hold {len(colours)} different colours ({_some(colours)}). "
            "Were they smoothed or saved as JPEG, or does each object have its own colour? If they are classes, name "
            f"them: {_flag({'classes': ['NAME', '...'], 'palette': [[0, 0, 0], '...']})}"
        )
    names = ["#{:02X}{:02X}{:02X}".format(*colour) for colour in colours]
    options = {"classes": names, "palette": [list(colour) for colour in colours]}
    return options, (
        f"{len(colours)} colours, each taken for a class; one that means no class belongs out of both lists and, say, "
        f'into "ignore_index": [{list(colours[0])}]'
    )


def _refuse_instances(folder: str, numbers: list[int], in_masks: list[set[Any]]) -> None:
    """Raise where masks look as if they number objects: each holds all numbers up to its own highest."""
    counted = numbers == [*range(int(numbers[0]), int(numbers[0]) + len(numbers))] if numbers else False
    if not counted or len(numbers) <= MOST_INSTANCES or IGNORE_INDEX in numbers:
        return
    lists = [sorted({_as_number(value) for value in mask}) for mask in in_masks]
    if len({len(found) for found in lists}) > 1 and all(found == numbers[: len(found)] for found in lists):
        raise ValueError(
            f"{folder}: each mask holds all numbers from {numbers[0]:g} up to its own highest, the highest of all is "
            f"{numbers[-1]:g}: that is how objects are numbered, and not classes. Make masks of class ids. If they are "
            f"classes all the same, name them: {_flag({'classes': ['NAME', 'NAME', '...']})}"
        )


def _names(numbers: list[int]) -> list[str] | dict[str, str]:
    """Names by number where these are not counted from 0."""
    if numbers == [*range(len(numbers))]:
        return [f"class {number}" for number in numbers]
    return {str(int(number)): f"class {int(number)}" for number in numbers}


def _flag(options: dict[str, Any]) -> str:
    return f"--dataset_options '{json.dumps(options)}'"


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:FEW_TO_SHOW])) + (", ..." if len(values) > FEW_TO_SHOW else "")
