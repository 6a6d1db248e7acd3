"""`with_usual_columns`: gives a data set from elsewhere the columns that this package reads."""

from __future__ import annotations

from collections.abc import Sequence

import datasets

from hf_segkd.suggestions import did_you_mean

from .files import FEATURES, numbered

IMAGE_COLUMNS = ("image", "pixel_values", "img")
# Columns of merve/scene_parse_150, nateraw/pascal-voc-2012, Chris1/cityscapes, and the SegFormer tutorial.
MASK_COLUMNS = (
    "annotation",
    "mask",
    "semantic_segmentation",
    "segmentation",
    "segmentation_mask",
    "label",
    "labels",
    "annotations",
    "masks",
)


def with_usual_columns(
    dataset: datasets.Dataset, where: str, image_column: str | None = None, mask_column: str | None = None
) -> datasets.Dataset:
    """The data set with `image`, `annotation` and `image_id`, in this order; rows without an id are numbered.

    Args:
        dataset: With a column of images and one of masks.
        where: What errors call it.
        image_column: The images' column; by default the first of `IMAGE_COLUMNS` that holds pictures.
        mask_column: The masks' column; by default the first of `MASK_COLUMNS` that holds pictures.

    Raises:
        ValueError: If there is no such column, or it holds no pictures.
    """
    image = _column(dataset, where, "image_column", image_column, IMAGE_COLUMNS)
    mask = _column(dataset, where, "mask_column", mask_column, MASK_COLUMNS)
    kept = [image, mask, *(name for name in ("image_id",) if name in dataset.column_names)]
    dataset = dataset.select_columns(kept).rename_columns({image: "image", mask: "annotation"})
    return numbered(dataset).select_columns(list(FEATURES))


def _column(dataset: datasets.Dataset, where: str, option: str, name: str | None, usual: Sequence[str]) -> str:
    columns = dataset.column_names
    if name is not None and name not in columns:
        raise ValueError(
            f"{where}: there is no column {name!r}.{did_you_mean(name, columns)} There are: {', '.join(columns)}."
        )
    there = [name] if name is not None else [column for column in usual if column in columns]
    if not there:
        raise ValueError(
            f"{where}: need a column {usual[0]} (or {', '.join(usual[1:])}), or its name as {option}; there are: "
            f"{', '.join(columns)}."
        )
    pictures = [column for column in there if isinstance(dataset.features[column], datasets.Image)]
    if not pictures:
        raise ValueError(f"{where}: column {there[0]} must hold pictures, it is {dataset.features[there[0]]}.")
    return pictures[0]
