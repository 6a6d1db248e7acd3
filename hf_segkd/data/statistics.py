"""`count_statistics`: mean and standard deviation of each channel of a data set's images."""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import numpy as np
from tqdm.auto import tqdm

from .decoding import stored_channels


@dataclass(frozen=True)
class ChannelStatistics:
    """What the pixels of all images are like, channel by channel.

    Attributes:
        mean: (c,) float64, in the units of the files (0 to 255 of RGB).
        std: (c,) float64, of the population.
        smallest: (c,).
        largest: (c,).
        num_images: Number of images.
        num_pixels: Number of pixels.
    """

    mean: np.ndarray
    std: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray
    num_images: int
    num_pixels: int


def count_statistics(dataset: datasets.Dataset) -> ChannelStatistics:
    """Read all images once, in float64 and with the memory of one; each pixel counts alike.

    The sums of squares are those of the differences from the mean, merged image by image (Chan, Golub and LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances", 1979): nothing cancels.

    Args:
        dataset: The training split, from `load_segmentation_dataset` or `load_unlabelled_images`.

    Raises:
        ValueError: If there is no image, one cannot be read, or a channel is the same number everywhere.
    """
    if len(dataset) == 0:
        raise ValueError("The data set is empty.")
    images = dataset.select_columns(["image", "image_id"])  # masks are not read
    pixels, mean, squares, smallest, largest = 0, 0.0, 0.0, np.inf, -np.inf
    for row in tqdm(images, unit="image"):
        values = np.asarray(row["image"], dtype=np.float64)
        values = values.reshape(-1, values.shape[2])
        own_mean = values.mean(axis=0)
        own_squares = np.square(values - own_mean).sum(axis=0)
        difference, total = own_mean - mean, pixels + len(values)
        squares = squares + own_squares + np.square(difference) * pixels * len(values) / total
        mean = mean + difference * len(values) / total
        pixels = total
        smallest, largest = np.minimum(smallest, values.min(axis=0)), np.maximum(largest, values.max(axis=0))
    if len(constant := np.flatnonzero(smallest == largest)):
        raise ValueError(
            f"Channels {', '.join(str(channel + 1) for channel in constant)} (from 1) have the same number in all "
            "pixels of all images: there is nothing to normalise or to learn in them. Leave them out of the files."
        )
    return ChannelStatistics(mean, np.sqrt(squares / pixels), smallest, largest, len(dataset), pixels)


def processor_values(statistics: ChannelStatistics, dataset: datasets.Dataset) -> dict[str, object]:
    """`image_mean` and `image_std` as the image processor takes them, and `num_channels`, None for RGB.

    Bands that are read as they are stored keep their units; RGB is rescaled to 0..1 before it is normalised.
    """
    num_channels = stored_channels(dataset)
    scale = 255 if num_channels is None else 1
    return {
        "num_channels": num_channels,
        "image_mean": (statistics.mean / scale).tolist(),
        "image_std": (statistics.std / scale).tolist(),
    }
