"""`load_official_from_hub`, `load_folder_from_hub`: data sets on the Hub, with the columns and ids of local ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from . import ade20k, cityscapes, pascal_context, voc
from .class_files import Classes
from .columns import with_usual_columns
from .decoding import SegmentationDecoder
from .files import FEATURES, canonical_split, check_num_images
from .folder import folder_scheme
from .labels import LabelScheme

SCHEMES = {
    "voc2012": voc.voc_scheme("voc2012"),
    "voc2012_aug": voc.voc_scheme("voc2012_aug"),
    "cityscapes": cityscapes.LABEL_IDS_SCHEME,
    "ade20k": ade20k.SCHEME,
    "pascal_context_59": pascal_context.SCHEME_59,
    "pascal_context_60": pascal_context.SCHEME_60,
}
SPLIT_SIZES = {
    "voc2012": voc.SPLIT_SIZES,
    "voc2012_aug": voc.AUG_SPLIT_SIZES,
    "cityscapes": cityscapes.SPLIT_SIZES,
    "ade20k": ade20k.SPLIT_SIZES,
    "pascal_context_59": pascal_context.SPLIT_SIZES,
    "pascal_context_60": pascal_context.SPLIT_SIZES,
}


def load_official_from_hub(
    name: str,
    hub_id: str,
    split: str,
    *,
    check_size: bool = True,
    image_column: str | None = None,
    mask_column: str | None = None,
) -> datasets.Dataset:
    """Load a public copy of an official data set.

    Args:
        name: As for `load_segmentation_dataset`; says what the numbers in the masks mean.
        hub_id: Repository on the Hub, or a local folder with the same files.
        split: Name of the split in the copy; "val", "validation" and "valid" are the same.
        check_size: Whether another number of images than that of the official split is an error.
        image_column: Column of the images; by default it is found (`image`, `pixel_values`, `img`).
        mask_column: Column of the masks; by default it is found (`annotation`, `mask`, `label` ...).

    Raises:
        ValueError: If the copy lacks the split, a column or images.
    """
    sizes = SPLIT_SIZES[name] if check_size else {}
    return _load(hub_id, split, SCHEMES[name], sizes, image_column, mask_column)


def load_folder_from_hub(
    hub_id: str,
    split: str,
    *,
    classes: Classes,
    palette: Sequence[Sequence[int]] | None = None,
    ignore_index: int | Sequence[Any] = (),
    ids: Mapping[Any, int | None] | None = None,
    read_colours: bool | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
) -> datasets.Dataset:
    """Load any data set of images and masks.

    Args:
        hub_id: As in `load_official_from_hub`.
        split: As in `load_official_from_hub`.
        classes: As in `load_folder`, and so `palette`, `ignore_index`, `ids` and `read_colours`.
        palette: As in `load_folder`.
        ignore_index: As in `load_folder`.
        ids: As in `load_folder`.
        read_colours: As in `load_folder`.
        image_column: As in `load_official_from_hub`.
        mask_column: As in `load_official_from_hub`.

    Raises:
        ValueError: If the copy lacks the split or a column, or as in `load_folder`.
    """
    scheme = folder_scheme(classes, palette, ignore_index, ids, read_colours)
    return _load(hub_id, split, scheme, {}, image_column, mask_column)


def _load(
    hub_id: str,
    split: str,
    scheme: LabelScheme,
    sizes: dict[str, int],
    image_column: str | None,
    mask_column: str | None,
) -> datasets.Dataset:
    """Load a split, rename its columns, and check its size where it is known."""
    where = f"{scheme.info.name} from {hub_id}"
    split = canonical_split(split, datasets.get_dataset_split_names(hub_id), where)
    dataset = datasets.load_dataset(hub_id, split=split)
    official_split = "val" if split in ("valid", "validation") else split
    if official_split in sizes:
        check_num_images(len(dataset), sizes[official_split], f"{where}, {split}")
    dataset = with_usual_columns(dataset, where, image_column, mask_column).cast(FEATURES)
    dataset.set_transform(SegmentationDecoder(scheme))
    return dataset
