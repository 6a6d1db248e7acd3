"""`load_folder`: loads your own folders of images and masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import datasets

from hf_segkd.suggestions import did_you_mean

from .class_files import FORMS, Classes, as_colour, read_classes
from .files import dataset_from_files, find_root
from .found_classes import find_classes, ids_of_binary
from .labels import IGNORE_INDEX, WIDE_IGNORE_INDEX, Colour, LabelInfo, LabelScheme, ignore_index_for, voc_palette
from .layouts import LAYOUT, Layout

VOID = "void"


def load_folder(
    data_dir: str | os.PathLike | None,
    split: str,
    *,
    classes: Classes | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    ignore_index: int | Sequence[Any] = (),
    ids: Mapping[Any, int | None] | None = None,
    read_colours: bool | None = None,
    missing_masks: str | None = None,
    image_dir: str | None = None,
    mask_dir: str | None = None,
    image_suffix: str = "",
    mask_suffix: str = "",
    split_file: str | None = None,
    validation_share: float | None = None,
    test_share: float | None = None,
    seed: int = 0,
) -> datasets.Dataset:
    """Load image/mask pairs that share their name without suffix.

    Args:
        data_dir: Holds `{split}/images` and `{split}/labels` (or `masks`, `annotations`), or `images/{split}` and
            `labels/{split}`, unless `image_dir` and `mask_dir` say otherwise. Folders in these are read too.
        split: Name of the split's folder; "val", "validation" and "valid" are the same.
        classes: Names in the order of their numbers in the masks, `["road", "car"]`; or by number, `{7: "road", 26:
            "car"}`; or a file with them, in the working directory or in `data_dir`: one name a line, or the class file
            of a tool (docs/data.md), e.g. "labelmap.txt" with the colours too. By default the class file in `data_dir`,
            else the numbers or colours that the masks of all splits hold, which a warning tells (`find_classes`).
        palette: RGB colour of each class, `[[0, 0, 0], [250, 50, 83]]`, by which masks in colours are read; by default
            those of the class file, else those of Pascal VOC, only for pictures.
        ignore_index: What means "no class" in the masks, besides 255 (and 65535 in masks of 16 bits): a number, `0`;
            several, `[0, 4]`; also colours, `[[224, 224, 192]]`.
        ids: Class id of each number, or colour, in the masks, None for "no class", where they are not the places in
            `classes`: `{1: 0, 2: 1, 3: 1, 0: None}`, `{0: 0, 255: 1}` for binary masks, `{"128,64,128": 0}`.
        read_colours: Whether masks are read by their colours: True for palette masks whose palettes differ from file to
            file, False for numbers where `palette` is only for pictures. By default masks of three channels are,
            where the colours are known.
        missing_masks: What the pixels of an image without a mask file are: a class, `"background"`, or `"void"`, no
            class. By default such an image is an error.
        image_dir: Folder of the images, `"img_dir"` for `img_dir/{split}` or `{split}/img_dir`; or with the place of
            the split in it, `"{split}"`; without splits where there is a `split_file` or `validation_share`.
        mask_dir: Folder of the masks, as `image_dir`: `"ann_dir"`. It may be the same, where `mask_suffix`
            distinguishes them.
        image_suffix: End of the images' names, with or without file suffix: `"_leftImg8bit.png"`.
        mask_suffix: End of the masks' names: `"_mask"`. Where neither is given and no image has a mask of its name,
            the first and last words that all images share, and those that all masks share, are left out.
        split_file: List of the images of a split in `data_dir`, `"ImageSets/Segmentation/{split}.txt"`: a name a
            line, or the paths of image and mask.
        validation_share: Share of the images that is the split "val", `0.2`; the others are "train". For folders
            without splits.
        test_share: Share of the images that is the split "test", beside `validation_share`.
        seed: Draws the images of "val" and "test".

    Raises:
        ValueError: If folders are missing, the split does not exist, an image has no mask or a mask no image, or
            arguments contradict each other.
    """
    layout = Layout(
        image_dir,
        mask_dir,
        image_suffix,
        mask_suffix,
        split_file,
        validation_share,
        seed,
        needs_masks=missing_masks is None,
        test_share=test_share,
    )
    named = {
        "palette": palette,
        "ignore_index": None if ignore_index == () else ignore_index,
        "ids": ids,
        "read_colours": read_colours,
    }
    given = {name: value for name, value in named.items() if value is not None}
    found = _find_options(layout, data_dir, split, classes, given)
    classes, palette, ids = found.get("classes", classes), found.get("palette", palette), found.get("ids", ids)
    scheme = folder_scheme(classes, palette, ignore_index, ids, read_colours, missing_masks, folder=data_dir)
    images, masks = layout.find(data_dir, split)
    return dataset_from_files([*images.values()], [masks.get(name) for name in images], [*images], scheme, split)


def with_found_classes(data_dir: str | os.PathLike | None, split: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `load_folder` with those that it finds itself, so that they need not be found again.

    Args:
        data_dir: As in `load_folder`.
        split: A split that there is.
        options: The options that are given.

    Raises:
        ValueError: As `load_folder`.
    """
    of_layout = {field.name: options[field.name] for field in fields(Layout) if field.name in options}
    layout = Layout(**of_layout, needs_masks=options.get("missing_masks") is None)
    given = {name: options[name] for name in ("palette", "ignore_index", "ids", "read_colours") if name in options}
    return {**options, **_find_options(layout, data_dir, split, options.get("classes"), given)}


def _find_options(
    layout: Layout, data_dir: str | os.PathLike | None, split: str, classes: Classes | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Options that say how masks are read, where they are not given: classes, palette, ids."""
    folder = find_root(data_dir, ("",), "", LAYOUT)
    if classes is None:
        if given:
            raise ValueError(f"{', '.join(given)}: of which classes? Give `classes` too, {FORMS}.")
        return find_classes(folder, layout.masks_of_all_splits(data_dir, split))
    if given:
        return {}
    listed = read_classes(classes, data_dir)
    if listed.names[2:] or listed.colours is not None or listed.numbers != [0, 1]:
        return {}
    ids = ids_of_binary(folder, listed.names, layout.masks_of_all_splits(data_dir, split))
    return {} if ids is None else {"ids": ids}


def folder_scheme(
    classes: Classes,
    palette: Sequence[Sequence[int]] | None = None,
    ignore_index: int | Sequence[Any] = (),
    ids: Mapping[Any, int | None] | None = None,
    read_colours: bool | None = None,
    missing_masks: str | None = None,
    folder: str | os.PathLike | None = None,
) -> LabelScheme:
    """What the numbers and colours in masks mean; arguments as in `load_folder`.

    Raises:
        ValueError: If a mask cannot hold a number, an id is no class, the names can't be read, they and the colours
            differ in number, or arguments contradict each other.
    """
    listed = read_classes(classes, folder)
    num_classes = len(listed.names)
    no_class = ignore_index_for(num_classes)
    numbers, colours = {number: class_id for class_id, number in enumerate(listed.numbers)}, {}
    given = palette if palette is not None else listed.colours
    if given is not None:
        given = [as_colour(colour, "palette") for colour in given]
    if given is not None and len(set(given)) == len(given):  # if classes share a colour, it is only for pictures
        colours = {colour: class_id for class_id, colour in enumerate(given)}
    if ids is not None:
        if listed.numbers != list(range(num_classes)):
            raise ValueError(f"classes gives names to the numbers {listed.numbers}, and ids too. Give one of the two.")
        numbers, more_colours = _of_ids(ids, listed.names, no_class)
        colours |= more_colours
    void = {number: no_class for number in (IGNORE_INDEX, WIDE_IGNORE_INDEX) if number >= no_class}
    numbers = void | numbers | dict.fromkeys(listed.no_class, no_class)
    for value in [ignore_index] if isinstance(ignore_index, int) else ignore_index:
        if not isinstance(value, int):
            colours[as_colour(value, "ignore_index")] = no_class
            continue
        if ids is not None and numbers.get(value, no_class) != no_class:
            raise ValueError(
                f"ids gives the number {value} a class, and ignore_index none. Leave it out of one of them."
            )
        numbers[_number(value, "ignore_index")] = no_class
    if read_colours and not colours:
        raise ValueError("read_colours reads masks by their colours: give `palette`, or a class file with colours.")
    if given is None:
        of_class = {class_id: colour for colour, class_id in reversed(colours.items())}
        given = [of_class.get(class_id, colour) for class_id, colour in enumerate(voc_palette(num_classes))]
    return LabelScheme(
        info=LabelInfo.from_names("folder", listed.names, given),
        raw_to_id=numbers,
        out_of_range_hint="Does `classes` lack a name, do the ids start at 1, or is it another `ignore_index`?",
        colours=colours or None,
        read_colours=read_colours,
        without_mask=_without_mask(missing_masks, listed.names, no_class),
    )


def _of_ids(
    ids: Mapping[Any, int | None], names: Sequence[str], no_class: int
) -> tuple[dict[int, int], dict[Colour, int]]:
    """The class ids of numbers and of colours."""
    numbers, colours = {}, {}
    for key, class_id in ids.items():
        if class_id is not None and (not isinstance(class_id, int) or not 0 <= class_id < len(names)):
            raise ValueError(
                f"ids: {key} becomes {class_id!r}, and there are classes 0 to {len(names) - 1} ({', '.join(names)}), "
                "or None (null in JSON) for no class."
            )
        class_id = no_class if class_id is None else class_id
        if isinstance(key, int) or (isinstance(key, str) and key.strip().isdecimal()):
            numbers[_number(int(key), "ids")] = class_id
        else:
            colours[as_colour(key, "ids")] = class_id
    return numbers, colours


def _number(number: int, option: str) -> int:
    if not 0 <= number <= WIDE_IGNORE_INDEX:
        raise ValueError(f"{option} must be numbers that a mask can hold, 0..{WIDE_IGNORE_INDEX}, got {number}.")
    return number


def _without_mask(missing_masks: str | None, names: Sequence[str], no_class: int) -> int | None:
    if missing_masks is None:
        return None
    if missing_masks == VOID:
        return no_class
    if missing_masks not in names:
        hint = did_you_mean(missing_masks, [*names, VOID])
        raise ValueError(f"missing_masks: there is no class {missing_masks!r}.{hint} Name one, or {VOID!r}.")
    return names.index(missing_masks)
