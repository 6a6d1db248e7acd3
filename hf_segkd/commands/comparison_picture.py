"""`draw_picture`: images, truth, the student alone and each method side by side, in a comparison's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np

from hf_segkd.evaluation.comparison_tables import Result
from hf_segkd.evaluation.typical import in_words, middle_images, middle_seed
from hf_segkd.networks import with_taps
from hf_segkd.networks.loading import load_network
from hf_segkd.publishing.publication import compare

PICTURE_FILE = "pictures.png"


def draw_picture(
    folder: Path,
    images: datasets.Dataset,
    baseline: Result,
    results: Sequence[Result],
    networks: Mapping[str, Sequence[str]],
    tile: list[int] | None,
    overlap: int | None,
) -> str:
    """Write the picture, and say which seed and images it shows: those in the middle of the methods' mean gain.

    Args:
        folder: Folder to write to.
        images: The split that was scored.
        baseline: The student alone.
        results: The methods, with their gains.
        networks: Title of a column -> the network with each seed, or one for all: folder or Hub id.
        tile: Side, or height and width, of the tiles that images were scored in; None for whole images.
        overlap: Pixels that neighbouring tiles share.
    """
    seeds = [run.seed for run in baseline.runs]
    place = middle_seed(np.mean([result.gain.of_seeds for result in results], axis=0).tolist())
    shown, gains = middle_images(baseline.counts[place], np.stack([result.counts[place] for result in results]))
    loaded = {}
    for title, of_seeds in networks.items():
        model, processor = load_network(of_seeds[place if len(of_seeds) > 1 else 0])
        loaded[title] = with_taps(model), processor  # also turns masks with classes into logits
    compare(images.select(shown), loaded, tile, overlap).save(folder / PICTURE_FILE, optimize=True)
    whose = "whose gain is the median" if len(results) == 1 else "whose mean gain over the methods is the median"
    return f"{PICTURE_FILE}: seed {seeds[place]}, {whose}; {in_words(shown, gains)}."
