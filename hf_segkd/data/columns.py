"""`find_columns`, `with_usual_columns`: which columns of a data set from elsewhere hold images and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import datasets
import numpy as np
import torch
from PIL import Image

from hf_segkd.suggestions import did_you_mean

from .files import FEATURES, numbered

IMAGE_COLUMNS = ("image", "pixel_values", "img", "jpg", "jpeg", "webp")  # the last three are webdataset's
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
FILE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")  # webdataset's mask.png is a column mask

Kind = Literal["picture", "matrix", "tensor", "other"]


class ColumnNames(NamedTuple):
    """Names of the columns that the user gives; None for those that are to be found."""

    image: str | None = None
    mask: str | None = None


def find_columns(
    kinds: Mapping[str, Kind], where: str, names: ColumnNames, labelled: bool = True
) -> tuple[str, str | None]:
    """The column of the images, and that of the masks; None where no column can be one.

    Args:
        kinds: What each column holds.
        where: What errors call the data set.
        names: The columns that the user names.
        labelled: Whether to look for masks; without them, `names` may be those of another data set.

    Raises:
        ValueError: If there is no column of images, several could be meant, or a named one holds something else.
    """
    listed = ", ".join(f"{column} ({kind})" if kind != "other" else column for column, kind in kinds.items())
    named = names.image if labelled or names.image in kinds else None
    image = named or _usual(kinds, where, "image_column", IMAGE_COLUMNS, ("picture", "tensor"), listed)
    if image is None:
        raise ValueError(
            f"{where}: need a column {IMAGE_COLUMNS[0]} (or {', '.join(IMAGE_COLUMNS[1:])}) that holds pictures, or "
            f"its name as image_column; there are: {listed}.{_uncast(kinds)}"
        )
    _require(kinds, where, "image_column", image, ("picture",), listed)
    if not labelled:
        return image, None
    others = {column: kind for column, kind in kinds.items() if column != image}
    mask = names.mask or _usual(others, where, "mask_column", MASK_COLUMNS, ("picture", "matrix"), listed)
    if mask is not None:
        _require(others, where, "mask_column", mask, ("picture", "matrix"), listed)
    elif pictures := [column for column, kind in others.items() if kind in ("picture", "matrix")]:
        raise ValueError(
            f"{where}: are the masks in {' or '.join(pictures)}? Name it as mask_column; to train without labels "
            f"leave it out: select_columns([{image!r}]). There are: {listed}."
        )
    elif misread := [column for column in others if _stem(column) in MASK_COLUMNS and "label" not in column]:
        raise ValueError(
            f"{where}: {' and '.join(misread)} sounds like masks, and holds no pictures. Cast paths or bytes: "
            f"cast_column({misread[0]!r}, datasets.Image()); to train without labels leave it out: "
            f"select_columns([{image!r}])."
        )
    return image, mask


def kinds_of_features(features: datasets.Features) -> dict[str, Kind]:
    """What the columns of a data set hold."""
    return {column: _kind_of_feature(feature) for column, feature in features.items()}


def kinds_of_row(row: Mapping[str, Any]) -> dict[str, Kind]:
    """What the entries of a row hold."""
    return {str(column): _kind_of_value(value) for column, value in row.items()}


def names_in(feature: Any) -> list[str] | None:
    """Names of the classes in a column of matrices; None where it has none, or is no such column."""
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    return feature.names if depth == 2 and isinstance(feature, datasets.ClassLabel) else None


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
        raise ValueError(_no_such_column(where, name, columns))
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


def _usual(
    kinds: Mapping[str, Kind], where: str, option: str, usual: Sequence[str], wanted: Sequence[Kind], listed: str
) -> str | None:
    """The only column of a usual name that holds what is wanted, None where there is none."""
    found = [column for column, kind in kinds.items() if _stem(column) in usual and kind in wanted]
    if len(found) > 1:
        raise ValueError(f"{where}: {' and '.join(found)} could be meant; name one as {option}. There are: {listed}.")
    return found[0] if found else None


def _require(
    kinds: Mapping[str, Kind], where: str, option: str, name: str, wanted: Sequence[Kind], listed: str
) -> None:
    if name not in kinds:
        raise ValueError(_no_such_column(where, name, list(kinds)))
    if kinds[name] == "tensor":
        raise ValueError(
            f"{where}: {name} holds floats. What is ready for the network is called pixel_values, (3, h, w) float32, "
            f"and labels, (h, w) integers; images are pictures, or uint8. There are: {listed}."
        )
    if kinds[name] not in wanted:
        raise ValueError(f"{where}: {option} {name} holds no pictures. There are: {listed}.")


def _no_such_column(where: str, name: str, columns: Sequence[str]) -> str:
    return f"{where}: there is no column {name!r}.{did_you_mean(name, columns)} There are: {', '.join(columns)}."


def _uncast(kinds: Mapping[str, Kind]) -> str:
    """What to do where a column of the usual name holds paths or bytes."""
    named = [column for column, kind in kinds.items() if kind == "other" and _stem(column) in IMAGE_COLUMNS]
    if not named:
        return ""
    return (
        f" If {named[0]} holds paths or the bytes of files, dataset.cast_column({named[0]!r}, datasets.Image()) makes "
        "pictures of them; the same for the masks."
    )


def _stem(column: str) -> str:
    for suffix in FILE_SUFFIXES:
        column = column.removesuffix(suffix)
    return column


def _kind_of_feature(feature: Any) -> Kind:
    if isinstance(feature, datasets.Image):
        return "picture"
    if isinstance(feature, datasets.Array2D | datasets.Array3D):
        return _kind_of_numbers(len(feature.shape), feature.dtype.startswith("float"))
    depth = 0
    while isinstance(feature, datasets.List | datasets.LargeList):
        feature, depth = feature.feature, depth + 1
    is_number = isinstance(feature, datasets.Value | datasets.ClassLabel) and feature.dtype not in ("string", "binary")
    return _kind_of_numbers(depth, feature.dtype.startswith("float")) if is_number else "other"


def _kind_of_value(value: Any) -> Kind:
    if isinstance(value, Image.Image | bytes) or (isinstance(value, Mapping) and value.keys() == {"bytes", "path"}):
        return "picture"
    if isinstance(value, torch.Tensor):
        return _kind_of_numbers(value.ndim, value.is_floating_point())
    if isinstance(value, list) and (not value or not isinstance(value[0], list)):
        return "other"
    if isinstance(value, np.ndarray | list):
        values = np.asarray(value)
        return _kind_of_numbers(values.ndim, values.dtype.kind == "f") if values.dtype.kind in "biuf" else "other"
    return "other"


def _kind_of_numbers(dimensions: int, floats: bool) -> Kind:
    if dimensions == 3:
        return "tensor" if floats else "picture"
    return "matrix" if dimensions == 2 else "other"
