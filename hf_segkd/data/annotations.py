"""`draw`: the index mask of an image from its annotated shapes, for `hf-segkd draw_masks`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .labels import IGNORE_INDEX


@dataclass(frozen=True)
class Shape:
    """A region of an image and its label.

    Args:
        label: Name of its class.
        region: Polygons, each a list x, y, x, y ... of at least three points in pixels from the upper left corner of
            the image; or a run-length encoding `{"size": [h, w], "counts": ...}` as COCO's, compressed or not.
        is_crowd: Whether it is drawn below all others.
    """

    label: str
    region: list[list[float]] | dict[str, Any]
    is_crowd: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its shapes.

    Args:
        name: Path of its file as the annotation has it.
        size: Height and width that the annotation gives it.
        shapes: In the order of the file.
        source: What errors call the annotation.
    """

    name: str
    size: tuple[int, int]
    shapes: list[Shape]
    source: str


@dataclass
class Annotations:
    """The content of a file or a folder of annotations.

    Args:
        images: The images.
        names: Names of the classes in the file's own order; None where it has no list of them.
        small_on_top: Whether smaller shapes lie on larger ones; otherwise later ones on earlier ones.
        not_drawn: (label, reason) -> number of shapes that are no regions.
    """

    images: list[AnnotatedImage]
    names: list[str] | None
    small_on_top: bool
    not_drawn: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def labels(self) -> list[str]:
        """Labels of all shapes, sorted."""
        return sorted({shape.label for image in self.images for shape in image.shapes})


def require_pycocotools() -> None:
    """Make sure that pycocotools, which draws, is installed.

    Raises:
        ImportError: If not; the message says how to install it.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise ImportError("Drawing masks needs pycocotools: pip install 'hf-segkd[annotations]'") from error


def region_mask(shape: Shape, image: AnnotatedImage) -> np.ndarray:
    """The pixels of a shape, (h, w) bool.

    A polygon, drawn by COCO's own code, covers the pixels whose centres lie in it, up to that code's rounding at edges.
    The rectangle from (x0, y0) to (x1, y1) of whole numbers has exactly (x1 - x0) (y1 - y0) pixels. What lies outside
    the image is cut off.

    Raises:
        ValueError: If a run-length encoding is damaged or one of another size.
    """
    height, width = image.size
    if isinstance(shape.region, list):
        from pycocotools import mask as coco

        return coco.decode(coco.merge(coco.frPyObjects(shape.region, height, width))).astype(bool)
    size, counts = shape.region["size"], shape.region["counts"]
    if list(size) != [height, width]:
        raise ValueError(
            f"{image.source}: the run-length encoding of a {shape.label!r} is of {size[1]} x {size[0]} pixels, and the "
            f"image {image.name} of {width} x {height}."
        )
    # Not decoded by pycocotools, which trusts the counts and leaves pixels that they do not reach to chance.
    runs = counts if isinstance(counts, list) else uncompressed(counts)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(
            f"{image.source}: the run-length encoding of a {shape.label!r} is damaged: its runs cover {sum(runs)} "
            f"pixels, and the image {image.name} has {height * width}."
        )
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def uncompressed(counts: str) -> list[int]:
    """The runs in a compressed run-length encoding of COCO.

    Digits of five bits, the lowest first, each with a bit that says whether another follows, and all plus 48 as a
    character; signed, and from the fourth run on the difference from the last but one.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        digit = ord(character) - 48
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    return runs


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """The uncompressed run-length encoding of a mask, (h, w) bool: column after column, pixels outside first."""
    pixels = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(pixels, prepend=np.int8(0)))
    return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0, append=pixels.size).tolist()}


def draw(
    image: AnnotatedImage, ids: Mapping[str, int | None], unlabelled: int, small_on_top: bool
) -> tuple[np.ndarray, Counter[str], int]:
    """The index mask of an image.

    Args:
        image: The image and its shapes.
        ids: Label -> class id, 255 for "no class", or None for what is left out.
        unlabelled: Class id, or 255, of the pixels that no shape covers.
        small_on_top: See `Annotations`; shapes of a crowd lie below all others.

    Returns:
        The mask, (h, w) uint8; label -> number of shapes that cover no pixel; and the number of pixels that shapes of
        different classes share, of which the one on top has them.

    Raises:
        ValueError: As in `region_mask`.
    """
    drawn, empty = [], Counter()
    for shape in image.shapes:
        if (class_id := ids[shape.label]) is None:
            continue
        pixels = region_mask(shape, image)
        area = int(pixels.sum())
        if area == 0:
            empty[shape.label] += 1
        drawn.append((not shape.is_crowd, -area if small_on_top else 0, class_id, pixels))
    mask = np.full(image.size, unlabelled, dtype=np.uint8)
    covered = np.zeros(image.size, dtype=bool)
    contested = np.zeros(image.size, dtype=bool)
    for _, _, class_id, pixels in sorted(drawn, key=lambda entry: entry[:2]):  # stable: else the order of the file
        contested |= covered & pixels & (mask != class_id)
        covered |= pixels
        mask[pixels] = class_id
    return mask, empty, int(contested.sum())


def class_ids(
    names: list[str], void_labels: list[str], left_out_labels: list[str], found: list[str]
) -> dict[str, int | None]:
    """Label -> class id, 255, or None, for all labels that shapes have.

    Raises:
        ValueError: If a label has no place, or more than one.
    """
    ids: dict[str, int | None] = {name: index for index, name in enumerate(names)}
    for flag, labels, value in (("void_labels", void_labels, IGNORE_INDEX), ("left_out_labels", left_out_labels, None)):
        if twice := [label for label in labels if label in ids]:
            raise ValueError(f"{', '.join(twice)}: in {flag} and in classes or another list; each label has one place.")
        ids |= dict.fromkeys(labels, value)
    if unknown := [label for label in found if label not in ids]:
        raise ValueError(
            f"Shapes have labels that are not in classes: {', '.join(unknown)}. The classes are {', '.join(names)}. "
            "Add them, or name them in void_labels (their pixels get no class) or left_out_labels (they are not drawn)."
        )
    return ids
