"""Copies of the data sets on the Hugging Face Hub, brought to the same columns and class ids as the local trees."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import datasets

from . import ade20k, cityscapes, pascal_context, voc
from .decoding import SegmentationDecoder
from .files import FEATURES, canonical_split, check_num_images, numbered
from .folder import folder_scheme
from .labels import IGNORE_INDEX, LabelScheme, decode_equal_channels

# Names of the mask column in the public copies: merve/scene_parse_150, nateraw/pascal-voc-2012, Chris1/cityscapes.
MASK_COLUMNS = ("annotation", "mask", "semantic_segmentation", "label", "labels", "segmentation_mask")

# Some copies hold VOC's masks in colours, and index masks with their channel repeated three times.
SCHEMES = {
    "voc2012": replace(voc.voc_scheme("voc2012"), decode_colours=voc.decode_voc_colours),
    "voc2012_aug": replace(voc.voc_scheme("voc2012_aug"), decode_colours=voc.decode_voc_colours),
    "cityscapes": replace(cityscapes.LABEL_IDS_SCHEME, decode_colours=decode_equal_channels),
    "ade20k": replace(ade20k.SCHEME, decode_colours=decode_equal_channels),
    "pascal_context_59": replace(pascal_context.SCHEME_59, decode_colours=decode_equal_channels),
    "pascal_context_60": replace(pascal_context.SCHEME_60, decode_colours=decode_equal_channels),
}
SPLIT_SIZES = {
    "voc2012": voc.SPLIT_SIZES,
    "voc2012_aug": voc.AUG_SPLIT_SIZES,
    "cityscapes": cityscapes.SPLIT_SIZES,
    "ade20k": ade20k.SPLIT_SIZES,
    "pascal_context_59": pascal_context.SPLIT_SIZES,
    "pascal_context_60": pascal_context.SPLIT_SIZES,
}


def load_official_from_hub(name: str, hub_id: str, split: str, *, check_size: bool = True) -> datasets.Dataset:
    """Load a public copy of an official data set.

    Args:
        name: As for `load_segmentation_dataset`; says what the numbers in the masks mean.
        hub_id: Repository on the Hub, or a local folder with the same files.
        split: Name of the split in the copy; "val" and "validation" are the same.
        check_size: Whether another number of images than that of the official split is an error.

    Raises:
        ValueError: If the copy lacks the split, a column or images.
    """
    return _load(hub_id, split, SCHEMES[name], SPLIT_SIZES[name] if check_size else {})


def load_folder_from_hub(
    hub_id: str,
    split: str,
    *,
    classes: Sequence[str] | str | os.PathLike,
    palette: Sequence[Sequence[int]] | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> datasets.Dataset:
    """Load any data set of images and index masks; arguments as for `load_folder`.

    Raises:
        ValueError: If the copy lacks the split or a column, or as in `load_folder`.
    """
    return _load(hub_id, split, folder_scheme(classes, palette, ignore_index), {})


def _load(hub_id: str, split: str, scheme: LabelScheme, sizes: dict[str, int]) -> datasets.Dataset:
    """Load a split, rename its columns, and check its size where it is known."""
    where = f"{scheme.info.name} from {hub_id}"
    split = canonical_split(split, datasets.get_dataset_split_names(hub_id), where)
    dataset = datasets.load_dataset(hub_id, split=split)
    official_split = "val" if split == "validation" else split
    if official_split in sizes:
        check_num_images(len(dataset), sizes[official_split], f"{where}, {split}")
    dataset = _rename_columns(dataset, where).cast(FEATURES)
    dataset.set_transform(SegmentationDecoder(scheme))
    return dataset


def _rename_columns(dataset: datasets.Dataset, where: str) -> datasets.Dataset:
    """Keep image, annotation and image_id, in this order; rows without an id are numbered."""
    masks = [column for column in MASK_COLUMNS if column in dataset.column_names]
    if "image" not in dataset.column_names or not masks:
        raise ValueError(
            f"{where}: need a column image and one of {', '.join(MASK_COLUMNS)}; there are: "
            f"{', '.join(dataset.column_names)}."
        )
    for column in ("image", masks[0]):
        if not isinstance(dataset.features[column], datasets.Image):
            raise ValueError(f"{where}: column {column} must hold pictures, it is {dataset.features[column]}.")
    if masks[0] != "annotation":
        dataset = dataset.rename_column(masks[0], "annotation")
    return numbered(dataset).select_columns(list(FEATURES))
