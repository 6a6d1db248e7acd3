"""What the labels of a data set mean: names, colours, and how the numbers in its files become class ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

# Class ids are uint8 and 255 is kept for pixels without a class, in every data set.
IGNORE_INDEX = 255
MAX_NUM_CLASSES = 255


@dataclass(frozen=True)
class LabelInfo:
    """What a model, a report or a picture needs to know of a data set's classes.

    Args:
        name: Name of the data set, as `load_segmentation_dataset` knows it.
        id2label: Class id, from 0 without gaps, to its name.
        palette: RGB colour of each class, 0-255, in the order of the ids.
        ignore_index: Label of the pixels that have no class; always 255 after loading.

    Raises:
        ValueError: If the ids have gaps, the colours do not match them, or there are more classes than uint8 holds.
    """

    name: str
    id2label: dict[int, str]
    palette: list[Colour]
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        num_classes = len(self.id2label)
        if not 1 <= num_classes <= MAX_NUM_CLASSES:
            raise ValueError(
                f"{self.name}: got {num_classes} classes, need 1 to {MAX_NUM_CLASSES}: masks are 8-bit and "
                f"{IGNORE_INDEX} is kept for pixels without a class."
            )
        if sorted(self.id2label) != list(range(num_classes)):
            raise ValueError(f"{self.name}: class ids must be 0..{num_classes - 1}, got {sorted(self.id2label)}.")
        if len(self.palette) != num_classes:
            raise ValueError(f"{self.name}: {num_classes} classes need as many colours, got {len(self.palette)}.")

    @property
    def num_labels(self) -> int:
        """Number of classes k."""
        return len(self.id2label)

    @classmethod
    def from_names(cls, name: str, class_names: Sequence[str], palette: Sequence[Sequence[int]]) -> LabelInfo:
        """Build from the names and the colours in the order of the class ids."""
        return cls(name, dict(enumerate(class_names)), [(int(r), int(g), int(b)) for r, g, b in palette])


@dataclass(frozen=True)
class LabelScheme:
    """How the numbers in the mask files of a data set become class ids.

    Args:
        info: The classes after conversion.
        raw_to_id: Number in the file -> class id, or 255 for "no class". Any other number in a file is an error.
        out_of_range_hint: Likely cause of such an error, for its message.
        decode_colours: For data sets whose masks also circulate as colour images: turns (h, w, 3) uint8 into the
            (h, w) numbers that `raw_to_id` takes, or raises `ValueError`. Without it, colour masks are an error.
    """

    info: LabelInfo
    raw_to_id: Mapping[int, int]
    out_of_range_hint: str
    decode_colours: Callable[[np.ndarray], np.ndarray] | None = None


def class_names(id2label: Mapping[int, str]) -> list[str]:
    """Names of the classes in the order of their ids, as a network's configuration or a `LabelInfo` has them."""
    return [id2label[index] for index in sorted(id2label)]


def voc_palette(num_colours: int) -> list[Colour]:
    """The colour map of the Pascal VOC development kit: well separated colours for ids 0..255, black first.

    Bits 0, 3, 6 of an id become the high bits of red, bits 1, 4, 7 of green, bits 2, 5 of blue (`VOClabelcolormap.m`).
    """
    return [
        tuple(sum(((index >> (3 * level + channel)) & 1) << (7 - level) for level in range(3)) for channel in range(3))
        for index in range(num_colours)
    ]


def decode_equal_channels(colours: np.ndarray) -> np.ndarray:
    """Read an index mask that was saved with its one channel repeated three times.

    Args:
        colours: (h, w, 3) uint8.

    Returns:
        (h, w) uint8.

    Raises:
        ValueError: If the channels differ: then it is a colour picture, whose classes cannot be known.
    """
    first = colours[..., 0]
    if (first != colours[..., 1]).any() or (first != colours[..., 2]).any():
        raise ValueError("its three channels differ, so it is a colour picture and not class ids")
    return first
