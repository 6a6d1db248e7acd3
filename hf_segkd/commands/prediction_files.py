"""`image_files`: the images of `predict` and the names of their pictures; `are_there`: which pictures exist already."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_segkd.data.files import IMAGE_SUFFIXES

MADE_WITH = "hf_segkd"  # key of the text in a mask's PNG that identifies the run
LEGEND = "legend.png"


def image_files(paths: list[str], output: Path | None = None) -> dict[Path, str]:
    """The images among files and in folders and their subfolders, in order of name.

    Args:
        paths: Files and folders.
        output: Folder that is not searched for images. Folders that this command wrote before and hidden ones are not
            searched either; links to folders are not followed.

    Returns:
        File -> name of its pictures: its path in the folder it was found in, without the suffix.

    Raises:
        ValueError: If a path does not exist, there is no image, or two images would be written to one name.
    """
    files: dict[Path, str] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files |= {file: _stem(file.relative_to(path)) for file in _images_in(path, output)}
        elif path.is_file():
            files[path] = path.stem
        else:
            raise ValueError(f"There is no file or folder {path}.")
    if not files:
        raise ValueError(f"No images ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(paths)}.")
    name, count = Counter(files.values()).most_common(1)[0]
    if count > 1:
        raise ValueError(f"Several images are called {name!r}; their pictures would overwrite each other.")
    return files


def _images_in(root: Path, output: Path | None) -> Iterator[Path]:
    left_out = None if output is None else output.resolve()
    for folder, folders, names in os.walk(root):
        place = Path(folder)
        if place != root and (place.resolve() == left_out or (LEGEND in names and _made_here(place / LEGEND))):
            folders.clear()  # pictures of predictions
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield place / name


def _made_here(legend: Path) -> bool:
    try:
        with Image.open(legend) as picture:
            return MADE_WITH in picture.info
    except OSError:
        return False


def _stem(path: Path) -> str:
    return (path.parent / path.stem).as_posix()


def refuse_overwriting(files: dict[Path, str], output: Path) -> None:
    """Make sure that no picture would overwrite an image or another picture.

    Args:
        files: As `image_files` gives them.
        output: Folder of the pictures.

    Raises:
        ValueError: If one would.
    """
    inputs = {file.resolve() for file in files}
    targets = [LEGEND, *(f"{name}{end}" for name in files.values() for end in (".png", "_mask.png"))]
    for name, count in Counter(targets).items():
        if (output / name).resolve() in inputs:
            raise ValueError(f"{output / name} is one of the images and would be overwritten. Choose another --output.")
        if count > 1:
            raise ValueError(f"Two pictures would be called {name!r}. Rename an image, or predict them one by one.")


def are_there(pictures: list[Path], image: Path, made_with: str) -> bool:
    """Whether pictures, the mask last, come from an earlier run like this one and are not older than their image."""
    try:
        with Image.open(pictures[-1]) as mask:
            same = mask.info.get(MADE_WITH) == made_with
        return same and all(picture.stat().st_mtime >= image.stat().st_mtime for picture in pictures)
    except OSError:
        return False


def save(picture: Image.Image, path: Path, made_with: str | None = None) -> None:
    """Write a PNG so that a file of its name is always whole."""
    info = PngInfo()
    if made_with is not None:
        info.add_text(MADE_WITH, made_with)
    part = path.with_name(f".{path.name}.part")
    picture.save(part, format="PNG", pnginfo=info)
    part.replace(path)
