"""`read_labelme`: reads the JSON files of labelme, one for each image."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from .annotations import AnnotatedImage, Annotations, Shape, run_lengths
from .image_files import open_image

# A polygon for a circle: its area is smaller by the 20,000th part.
CIRCLE_POINTS = 360
# X-AnyLabeling's name for labelme's oriented_rectangle.
POLYGONS = ("polygon", "oriented_rectangle", "rotation")


def read_labelme(folder: Path) -> Annotations:
    """Read all JSON files of a folder and of the folders in it.

    The name of an image is its `imagePath`, which counts from its JSON file, as a path from the folder.

    Raises:
        ValueError: If there are none, or one is not labelme's.
    """
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise ValueError(f"{folder} has no .json files, neither have the folders in it.")
    not_drawn: Counter[tuple[str, str]] = Counter()
    return Annotations([_read(file, folder, not_drawn) for file in files], None, False, not_drawn)


def _read(file: Path, folder: Path, not_drawn: Counter[tuple[str, str]]) -> AnnotatedImage:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        path = file.parent / PureWindowsPath(content["imagePath"]).as_posix()  # on Windows written with its separators
        size = (int(content["imageHeight"]), int(content["imageWidth"]))
        entries = [(entry["label"], entry.get("shape_type") or "polygon", entry) for entry in content["shapes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not a file of labelme, which has imagePath, imageHeight, imageWidth and shapes with a label: "
            f"{type(error).__name__} {error}"
        ) from error
    image = AnnotatedImage(Path(os.path.relpath(path, folder)).as_posix(), size, [], str(file))
    for label, kind, entry in entries:
        region = _region(kind, entry, image)
        if region is None:
            not_drawn[label, kind] += 1
        else:
            image.shapes.append(Shape(label, region))
    return image


def _region(kind: str, entry: dict[str, Any], image: AnnotatedImage) -> Any:
    """The region of a shape; None where it consists of points or lines."""
    try:
        points = np.asarray(entry["points"], dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError("a coordinate is not finite")
        if kind in POLYGONS:
            return [points.ravel().tolist()] if len(points) >= 3 else None
        if kind == "rectangle":
            (left, top), (right, bottom) = points.min(0), points.max(0)  # of two corners, or of all four
            return [[left, top, right, top, right, bottom, left, bottom]]
        if kind == "circle":
            centre, edge = points
            angles = np.linspace(0, 2 * math.pi, CIRCLE_POINTS, endpoint=False)
            around = math.dist(centre, edge) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            return [(centre + around).ravel().tolist()]
        if kind == "mask":
            return _pasted(entry["mask"], points.astype(int), image)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{image.source}: a {kind} of {entry['label']!r} cannot be read: {error}") from error
    return None


def _pasted(png: str, corners: np.ndarray, image: AnnotatedImage) -> dict[str, Any]:
    """A mask that was stored as a small PNG, with its first and its last column and row, as run-length encoding."""
    small = np.asarray(open_image(io.BytesIO(base64.b64decode(png)), "its mask")).astype(bool)
    (left, top), (right, bottom) = corners
    if small.shape != (bottom - top + 1, right - left + 1):
        raise ValueError(
            f"its mask has {small.shape} rows and columns, its points say {bottom - top + 1, right - left + 1}"
        )
    rows, columns = np.nonzero(small)
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < image.size[0]) & (columns >= 0) & (columns < image.size[1])
    whole = np.zeros(image.size, dtype=bool)
    whole[rows[inside], columns[inside]] = True
    return run_lengths(whole)
