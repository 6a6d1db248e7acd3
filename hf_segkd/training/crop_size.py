"""`measured_crop_size`: the size of training crops where nobody gives one and images keep their own sizes."""

from __future__ import annotations

import statistics

import datasets

from hf_segkd.data import evenly_spread
from hf_segkd.data.image_files import UnreadableImageError

LARGEST_CROP = 512  # about the crops of the AttnFD and FAKD papers, 513 and 512
MULTIPLE = 32  # the networks' largest stride
NUM_SAMPLES = 15


def measured_crop_size(images: datasets.Dataset) -> tuple[int, int]:
    """Median height and width of images, cut down to a multiple of 32, from 32 to 512.

    Args:
        images: With a column `image`; fifteen of them are read, evenly spread. Files that cannot be read are passed
            over.

    Raises:
        ValueError: If none can be read.
    """
    sizes = []
    samples = evenly_spread(images, NUM_SAMPLES)
    for row in range(len(samples)):
        try:
            image = samples[row]["image"]
        except UnreadableImageError:  # training tells of it, or leaves it out
            continue
        sizes.append((image.height, image.width))
    if not sizes:
        raise ValueError("No image could be read to measure the size of training crops. Pass crop_size (height width).")
    return tuple(
        max(MULTIPLE, min(LARGEST_CROP, int(statistics.median(sides)) // MULTIPLE * MULTIPLE))
        for sides in zip(*sizes, strict=True)
    )
