"""`class_colours`: the colours in which classes are drawn where only their names are known."""

from __future__ import annotations

from collections.abc import Sequence

from . import ade20k, cityscapes, pascal_context
from .labels import Colour, class_names, voc_palette

OFFICIAL = (cityscapes.INFO, ade20k.SCHEME.info, pascal_context.SCHEME_59.info, pascal_context.SCHEME_60.info)


def class_colours(names: Sequence[str]) -> list[Colour]:
    """The colours of the data set whose classes have these names, in this order; else those of Pascal VOC."""
    for info in OFFICIAL:
        if class_names(info.id2label) == list(names):
            return info.palette
    return voc_palette(len(names))
