"""`load_unlabelled_images`: images without masks, from which a student learns through its teacher."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import datasets

from .decoding import decode_images, stored_channels, with_stored_channels
from .files import FEATURES, IMAGE_SUFFIXES, MASK_FOLDERS, numbered, warn_of_others


def load_unlabelled_images(data_dir: str | os.PathLike, num_channels: int | None = None) -> datasets.Dataset:
    """Load all images of a folder and of the folders in it; files are found now, decoded when a row is read.

    Args:
        data_dir: Holds the images. Hidden files and files that are no images are left out, links to folders
            are not followed.
        num_channels: As in `load_segmentation_dataset`.

    Returns:
        A data set with columns `image` (PIL RGB) and `image_id`, the file's path in the folder; for the trainer's
        `unlabelled_dataset`, or its `train_dataset` where no image has labels.

    Raises:
        ValueError: If there is no such folder, there are no images in it, or it holds a folder of masks, which would be
            taken for images.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from hf_segkd import load_unlabelled_images
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (8, 6)).save(f"{folder}/photo.png")
        >>> load_unlabelled_images(folder)[0]["image_id"]
        'photo.png'
    """
    root = Path(data_dir).expanduser().absolute()
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder. Expected there: images, in it or in folders of it.")
    files, others = [], Counter()
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        masks = [name for name in folders if name in MASK_FOLDERS]
        if masks:
            raise ValueError(
                f"{Path(folder, masks[0])} looks like a folder of masks, which would be taken for images. Point to the "
                "folder of the images alone."
            )
        others.update(Path(name).suffix.lower() for name in names)
        files += [Path(folder, name) for name in sorted(names) if _is_image(name)]
    if not files:
        raise ValueError(f"{root} has no images ({', '.join(IMAGE_SUFFIXES)}), neither have the folders in it.")
    warn_of_others(root, others)
    rows = {
        "image": [str(file) for file in files],
        "image_id": [file.relative_to(root).as_posix() for file in files],
    }
    features = datasets.Features({column: FEATURES[column] for column in rows})
    images = without_labels(datasets.Dataset.from_dict(rows, features=features))
    return with_stored_channels(images, num_channels)


def without_labels(dataset: datasets.Dataset) -> datasets.Dataset:
    """Only the images of a data set, decoded and checked as those of `load_segmentation_dataset`.

    Args:
        dataset: With a column `image`. Masks are not even read; a transform that it has is replaced.

    Raises:
        ValueError: If there is no column of images.
    """
    if not isinstance(dataset.features.get("image"), datasets.Image):
        raise ValueError(
            f"Unlabelled images are looked for in a column `image` of datasets.Image; there are: {dataset.features}."
        )
    images = numbered(dataset.with_format(None)).select_columns(["image", "image_id"])
    images = images.cast_column("image", FEATURES["image"])
    images.set_transform(decode_images)
    return with_stored_channels(images, stored_channels(dataset))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
