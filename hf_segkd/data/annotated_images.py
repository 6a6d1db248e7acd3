"""`place`, `link_or_copy`: find and check the image files of annotations, and put them beside their masks."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .annotations import AnnotatedImage
from .files import IMAGE_SUFFIXES, shorten
from .image_files import size_and_orientation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlacedImage:
    """An annotated image and its file.

    Args:
        image: The annotation.
        path: The image file.
        target: Its name in the data set.
        orientation: EXIF orientation that the mask is turned by, since it is drawn on the pixels as stored; 1 for none,
            and None for none where the sizes do not show whether it is needed.
    """

    image: AnnotatedImage
    path: Path
    target: str
    orientation: int | None


def place(images: Sequence[AnnotatedImage], folder: Path) -> list[PlacedImage]:
    """Find the file of each image and check its size; report files that have no annotation.

    Args:
        images: The annotations.
        folder: Folder of the image files.

    Raises:
        ValueError: If images are missing, of another size, or two would have one name.
    """
    if not folder.is_dir():
        raise ValueError(f"images: {folder} is not a folder.")
    folder = Path(os.path.normpath(folder))
    paths = [_find(image, folder) for image in images]
    if missing := [image.name for image, path in zip(images, paths, strict=True) if path is None]:
        raise ValueError(f"{folder}: {len(missing)} of {len(images)} images are not there: {shorten(missing)}.")
    placed = [_placed(image, path, folder) for image, path in zip(images, paths, strict=True)]
    stems = Counter(Path(file.target).stem for file in placed)
    if twice := sorted(stem for stem, count in stems.items() if count > 1):
        raise ValueError(f"Several images, or annotations of one, have a name but for the suffix: {shorten(twice)}.")
    used = {file.path for file in placed}
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if others := sorted(file.name for file in files if file not in used):
        logger.warning(f"{folder}: {len(others)} images are left out, with nothing annotated: {shorten(others)}.")
    if unsure := [file.image.name for file in placed if file.orientation is None]:
        logger.warning(
            f"{len(unsure)} photos carry an EXIF orientation, and sizes do not tell whether the shapes were drawn "
            f"before they were turned upright or after; after is assumed: {shorten(unsure)}."
        )
    return placed


def link_or_copy(image: Path, target: Path) -> None:
    """Give the image a second name, without taking its space again where the file system can do so.

    Raises:
        ValueError: If there is another file.
    """
    if target.exists():
        if target.samefile(image):
            return
        raise ValueError(f"{target} exists already and is not {image}.")
    try:
        os.link(image.resolve(), target)
    except OSError:
        shutil.copy2(image, target)


def _find(image: AnnotatedImage, folder: Path) -> Path | None:
    """The file of an image: below the folder by its path, or only by its name."""
    for name in (image.name, Path(image.name).name):
        candidate = Path(os.path.normpath(folder / name))
        if candidate.is_file() and candidate.is_relative_to(folder):
            return candidate
    return None


def _placed(image: AnnotatedImage, path: Path, folder: Path) -> PlacedImage:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"{path}: images are read with the suffixes {', '.join(IMAGE_SUFFIXES)}; rename it.")
    (width, height), orientation = size_and_orientation(str(path), str(path))
    stored = (height, width)
    upright = stored[::-1] if orientation >= 5 else stored
    if image.size not in (stored, upright):
        raise ValueError(
            f"{path} is {upright[1]} x {upright[0]} pixels, and its annotation in {image.source} is for "
            f"{image.size[1]} x {image.size[0]}."
        )
    turn: int | None = 1
    if orientation != 1 and stored == upright:
        turn = None
    elif image.size != upright:
        turn = orientation
    return PlacedImage(image, path, "_".join(path.relative_to(folder).parts), turn)
