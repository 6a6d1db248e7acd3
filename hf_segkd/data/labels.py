"""`LabelInfo`: names and colours of a data set's classes; `LabelScheme`: how its files become class ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Colour = tuple[int, int, int]

# The label of pixels without a class: the last number of 8 bits, of 16 where a data set has more classes than that.
IGNORE_INDEX = 255
WIDE_IGNORE_INDEX = 65535


def ignore_index_for(num_labels: int) -> int:
    """The label of pixels without a class, in a data set of so many classes: 255, or 65535 with more than 255."""
    return IGNORE_INDEX if num_labels <= IGNORE_INDEX else WIDE_IGNORE_INDEX


@dataclass(frozen=True)
class LabelInfo:
    """What a model, a report or a picture needs to know of a data set's classes.

    Args:
        name: Name of the data set, as `load_segmentation_dataset` knows it.
        id2label: Class id, from 0 without gaps, to its name.
        palette: RGB colour of each class, 0-255, in the order of the ids.

    Raises:
        ValueError: If the ids have gaps, two classes have one name, the colours do not match them, or there are more
            classes than 16 bits hold.
    """

    name: str
    id2label: dict[int, str]
    palette: list[Colour]

    def __post_init__(self) -> None:
        num_classes = len(self.id2label)
        if not 1 <= num_classes <= WIDE_IGNORE_INDEX:
            raise ValueError(
                f"{self.name}: got {num_classes} classes, need 1 to {WIDE_IGNORE_INDEX}: masks have at most 16 bits "
                f"and {WIDE_IGNORE_INDEX} is kept for pixels without a class."
            )
        if sorted(self.id2label) != list(range(num_classes)):
            raise ValueError(f"{self.name}: class ids must be 0..{num_classes - 1}, got {sorted(self.id2label)}.")
        if len(self.palette) != num_classes:
            raise ValueError(f"{self.name}: {num_classes} classes need as many colours, got {len(self.palette)}.")
        first: dict[str, int] = {}
        for index, name in self.id2label.items():
            if name in first:
                raise ValueError(
                    f"{self.name}: classes {first[name]} and {index} are both called {name!r}, and scores are told by "
                    "name. Rename one, or give both numbers one class (`ids`)."
                )
            first[name] = index

    @property
    def num_labels(self) -> int:
        """Number of classes k."""
        return len(self.id2label)

    @property
    def ignore_index(self) -> int:
        """Label of the pixels that have no class, after loading: 255, or 65535 with more than 255 classes."""
        return ignore_index_for(self.num_labels)

    @classmethod
    def from_names(cls, name: str, class_names: Sequence[str], palette: Sequence[Sequence[int]]) -> LabelInfo:
        """Build from the names and the colours in the order of the class ids."""
        return cls(name, dict(enumerate(class_names)), [(int(r), int(g), int(b)) for r, g, b in palette])


@dataclass(frozen=True)
class LabelScheme:
    """How the content of a data set's mask files becomes class ids. Values are class ids, or `info.ignore_index`.

    Args:
        info: The classes after conversion.
        raw_to_id: Class id of each number in the file, 0..65535. Any other number in a file is an error.
        out_of_range_hint: Likely cause of such an error, for its message.
        colours: Class id of each colour in the file, for masks that are pictures in the colours of the classes.
        read_colours: Whether masks are read by their colours: all (True) or none (False); None, where there are
            `colours`, those of three channels, and palette masks whose numbers are not known but whose colours are.
        without_mask: The id of all pixels of an image that has no mask file; None where each has one.
    """

    info: LabelInfo
    raw_to_id: Mapping[int, int]
    out_of_range_hint: str
    colours: Mapping[Colour, int] | None = None
    read_colours: bool | None = None
    without_mask: int | None = None


def class_names(id2label: Mapping[int, str]) -> list[str]:
    """Names of the classes in the order of their ids, as a network's configuration or a `LabelInfo` has them."""
    return [id2label[index] for index in sorted(id2label)]


def voc_palette(num_colours: int) -> list[Colour]:
    """The colour map of the Pascal VOC development kit: well separated colours, black first.

    Bits 0, 3, 6 ... of an id become the high bits of red, bits 1, 4, 7 ... of green, bits 2, 5, 8 ... of blue
    (`VOClabelcolormap.m`, which goes to 255).
    """
    return [
        tuple(sum(((index >> (3 * level + channel)) & 1) << (7 - level) for level in range(6)) for channel in range(3))
        for index in range(num_colours)
    ]
