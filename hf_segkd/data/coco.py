"""`read_coco`: reads COCO JSON with polygons and run-length encodings, as many annotation tools export it."""

from __future__ import annotations

import json
import math
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Any

from .annotations import AnnotatedImage, Annotations, Shape
from .files import shorten


def read_coco(file: Path) -> Annotations:
    """Read images, categories and annotations; categories of one name are one class.

    Raises:
        ValueError: If it is not such a file, an annotation has an image or a category that the file does not have, or
            two images have one name.
    """
    content = _content(file)
    # By id, which need not begin at 0 nor be without gaps.
    names = {category["id"]: str(category["name"]) for category in sorted(content["categories"], key=itemgetter("id"))}
    images = {
        entry["id"]: AnnotatedImage(entry["file_name"], (int(entry["height"]), int(entry["width"])), [], str(file))
        for entry in content["images"]
    }
    by_name = Counter(image.name for image in images.values())
    if twice := [name for name, count in by_name.items() if count > 1]:
        raise ValueError(f"{file}: several images have one file_name: {shorten(twice)}.")
    not_drawn: Counter[tuple[str, str]] = Counter()
    for annotation in content["annotations"]:
        number, image_id, category = (annotation.get(key) for key in ("id", "image_id", "category_id"))
        if image_id not in images:
            raise ValueError(f"{file}: annotation {number} has image_id {image_id!r}, and no image has that id.")
        if category not in names:
            raise ValueError(f"{file}: annotation {number} has category_id {category!r}, and no category has that id.")
        region, reasons = _region(annotation, f"{file}: annotation {number}")
        not_drawn.update((names[category], reason) for reason in reasons)
        if region:
            images[image_id].shapes.append(Shape(names[category], region, bool(annotation.get("iscrowd", 0))))
    return Annotations(list(images.values()), list(dict.fromkeys(names.values())), True, not_drawn)


def _region(annotation: dict[str, Any], name: str) -> tuple[Any, list[str]]:
    """The region of an annotation, None where it has none, and why it, or polygons of it, are not drawn."""
    region = annotation.get("segmentation")
    if not region:
        kind = next((kind for kind in ("keypoints", "bbox") if annotation.get(kind)), "nothing")
        return None, [f"no segmentation, {kind} alone"]
    if isinstance(region, dict):
        if not {"size", "counts"} <= region.keys():
            raise ValueError(f"{name}: a run-length encoding has size and counts, this one {', '.join(region)}.")
        return region, []
    if not isinstance(region, list) or not all(isinstance(polygon, list) for polygon in region):
        raise ValueError(f"{name}: segmentation must be a list of polygons or a run-length encoding.")
    for polygon in region:
        if len(polygon) % 2 or not all(isinstance(value, int | float) and math.isfinite(value) for value in polygon):
            values = shorten([str(value) for value in polygon])
            raise ValueError(f"{name}: a polygon must be a list of numbers x, y, x, y ..., got {values}.")
    polygons = [polygon for polygon in region if len(polygon) >= 6]
    return polygons, ["polygon of fewer than three points"] * (len(region) - len(polygons))


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if isinstance(content, dict) and any("segments_info" in entry for entry in content.get("annotations", [])[:1]):
        raise ValueError(
            f"{file} is COCO's panoptic form, whose regions are in PNG files beside it. Draw the form with polygons or "
            "run-length encodings (instances, stuff)."
        )
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _LISTS):
        raise ValueError(f"{file} is not COCO JSON: it must hold the lists {', '.join(_LISTS)}.")
    for key, fields in _FIELDS.items():
        for entry in content[key]:
            if missing := [name for name in fields if name not in entry]:
                raise ValueError(f"{file}: an entry of {key} has no {', '.join(missing)}: {entry}")
    return content


_LISTS = ("images", "annotations", "categories")
_FIELDS = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}
