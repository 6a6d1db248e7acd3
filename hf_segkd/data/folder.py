"""Your own data: a folder of images, a folder of index masks, and a list of class names."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import datasets

from .files import canonical_split, check_pairs, dataset_from_files, files_by_stem, find_root
from .labels import IGNORE_INDEX, LabelInfo, LabelScheme, voc_palette

MASK_FOLDERS = ("labels", "masks", "annotations")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
LAYOUT = "{split}/images and {split}/labels (or masks, annotations), or images/{split} and labels/{split}"


def load_folder(
    data_dir: str | os.PathLike | None,
    split: str,
    *,
    classes: Sequence[str] | str | os.PathLike,
    palette: Sequence[Sequence[int]] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> datasets.Dataset:
    """Load image/mask pairs that share their name without suffix.

    Args:
        data_dir: Holds `{split}/images` and `{split}/labels` (or `masks`, `annotations`), or `images/{split}` and
            `labels/{split}`.
        split: Name of the split's folder; "val" and "validation" are the same.
        classes: Names in the order of the numbers in the masks; or a text file with one a line; or a JSON file
            with a list, or with a dictionary that has it under "classes".
        palette: RGB colour of each class; by default the colours of Pascal VOC.
        ignore_index: Number in the masks that means "no class", besides 255.

    Raises:
        ValueError: If folders are missing, the split does not exist, or an image has no mask or a mask no image.
    """
    scheme = folder_scheme(classes, palette, ignore_index)
    image_folder, mask_folder = _split_folders(data_dir, split)
    images = files_by_stem(image_folder, IMAGE_SUFFIXES)
    masks = files_by_stem(mask_folder, MASK_SUFFIXES)
    if not images:
        raise ValueError(f"{image_folder} has no images ({', '.join(IMAGE_SUFFIXES)}).")
    _check_lossless(mask_folder, images, masks)
    ids = sorted(images | masks)
    check_pairs(images, masks, ids, f"{image_folder} and {mask_folder}")
    return dataset_from_files([images[i] for i in ids], [masks[i] for i in ids], ids, scheme, split)


def folder_scheme(
    classes: Sequence[str] | str | os.PathLike, palette: Sequence[Sequence[int]] | None, ignore_index: int
) -> LabelScheme:
    """Labels that are class ids already, but for the one that means "no class"; arguments as in `load_folder`.

    Raises:
        ValueError: If `ignore_index` is not 0..255, the names can't be read, or they and the colours differ in number.
    """
    if not 0 <= ignore_index <= 255:
        raise ValueError(f"ignore_index must be a number that an 8-bit mask can hold, 0..255, got {ignore_index}.")
    names = read_class_names(classes) if isinstance(classes, str | os.PathLike) else list(classes)
    colours = palette if palette is not None else voc_palette(len(names))
    raw_to_id = {index: index for index in range(len(names))}
    return LabelScheme(
        info=LabelInfo.from_names("folder", names, colours),
        raw_to_id=raw_to_id | {IGNORE_INDEX: IGNORE_INDEX, ignore_index: IGNORE_INDEX},
        out_of_range_hint="Does `classes` lack a name, do the ids start at 1, or is it another `ignore_index`?",
    )


def read_class_names(file: str | os.PathLike) -> list[str]:
    """Class names from a text file, one a line, or from JSON: a list, or a dictionary with a list in "classes".

    Raises:
        ValueError: If the file does not exist or holds no such list.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"classes: {path} is not a file. Give a list of names, or a text or JSON file with them.")
    if path.suffix != ".json":
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    content = json.loads(path.read_text())
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'classes: {path} must hold a list of names, or a dictionary with one under "classes".')
    return names


def _split_folders(data_dir: str | os.PathLike | None, split: str) -> tuple[Path, Path]:
    """Folders of the images and of the masks of a split, in either of the two layouts."""
    root = find_root(data_dir, ("",), "", LAYOUT)
    split_inside = (root / "images").is_dir()  # images/{split} rather than {split}/images
    parent = root / "images" if split_inside else root
    available = sorted(
        folder.name for folder in parent.iterdir() if (folder if split_inside else folder / "images").is_dir()
    )
    if not available:
        raise ValueError(f"{root} has no split. Expected layout: {LAYOUT}.")
    split = canonical_split(split, available, str(root))
    candidates = [root / name / split if split_inside else root / split / name for name in MASK_FOLDERS]
    for mask_folder in candidates:
        if mask_folder.is_dir():
            return (parent / split if split_inside else parent / split / "images"), mask_folder
    raise ValueError(f"No folder of masks; looked for {', '.join(map(str, candidates))}.")


def _check_lossless(mask_folder: Path, images: dict[str, str], masks: dict[str, str]) -> None:
    """Reject masks saved as JPEG, the likely cause when all masks seem to be missing."""
    lossy = [path for stem, path in files_by_stem(mask_folder, (".jpg", ".jpeg")).items() if stem in images]
    if lossy and not masks:
        raise ValueError(f"{lossy[0]}: JPEG changes label ids; save the masks as PNG.")
