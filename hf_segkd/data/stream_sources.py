"""`Source`: where the rows of a stream come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
from torch.utils.data import get_worker_info

from .columns import find_columns, kinds_of_features
from .rows import RowReader, gives_tensors


class Source:
    """Where the rows of a stream come from.

    Args:
        rows: A `datasets.IterableDataset` or a torch one; or, as a part of a training stream, a `datasets.Dataset` of
            `load_segmentation_dataset`, whose rows come in an order that is drawn anew for each pass.
        reader: Reads a row of a stream.
        seed: Draws the order of a data set with a length.
    """

    def __init__(self, rows: Any, reader: RowReader, seed: int = 0) -> None:
        self.reader = reader
        self.seed = seed
        self.rows = _undecoded(rows, reader) if isinstance(rows, datasets.IterableDataset) else rows

    @property
    def is_known_to_lack_masks(self) -> bool:
        """Whether the features say that there is no column of masks."""
        if not isinstance(self.rows, datasets.IterableDataset) or self.rows.features is None:
            return False
        kinds = kinds_of_features(self.rows.features)
        return kinds.get("pixel_values") != "tensor" and find_columns(kinds, "", self.reader.names)[1] is None

    @property
    def may_give_tensors(self) -> bool:
        """Whether rows can be ready for the network, which of a stream without features only its rows tell."""
        if isinstance(self.rows, datasets.Dataset):
            return False
        known = self.rows.features if isinstance(self.rows, datasets.IterableDataset) else None
        return known is None or kinds_of_features(known).get("pixel_values") == "tensor"

    @property
    def num_shards(self) -> int | None:
        """How many workers can share the rows; None where any number can, or the stream alone knows."""
        return self.rows.num_shards if isinstance(self.rows, datasets.IterableDataset) else None

    @property
    def order(self) -> str:
        """Equal where two streams of `datasets` are shuffled alike; those without a seed never are."""
        states = [] if not isinstance(self.rows, datasets.IterableDataset) else _states(self.rows._ex_iterable)
        return hashlib.sha256("\n".join(map(str, states)).encode()).hexdigest()

    def pass_over(self, number: int) -> Iterator[Any]:
        """This worker's rows, as they are stored, in the order of a pass, 0 for the first."""
        if isinstance(self.rows, datasets.Dataset):
            worker, workers = this_worker()
            order = np.random.default_rng((self.seed, number)).permutation(len(self.rows))
            yield from order[worker::workers].tolist()
            return
        rows = self.rows
        if isinstance(rows, datasets.IterableDataset):
            rows = rows.shard(num_shards=1, index=0)  # with an epoch of its own: the workers share that of `rows`
        if callable(set_epoch := getattr(rows, "set_epoch", None)):
            set_epoch(number)
        yield from rows

    def read(self, stored: Any, place: str) -> dict[str, Any]:
        """A row with image and annotation, as `RowReader.read`; one that is ready for the network as it is."""
        if isinstance(self.rows, datasets.Dataset):
            return self.rows[stored]
        if gives_tensors(stored):
            return dict(stored)
        return self.reader.read(stored, place)


def this_worker() -> tuple[int, int]:
    """Number of this worker, from 0, and how many there are."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _states(part: Any) -> Iterator[Any]:
    """States of the generators that shuffle a stream: `datasets` keeps them in the links of a chain."""
    for value in vars(part).values():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, np.random.Generator):
                yield each.bit_generator.state
            elif type(each).__module__ == type(part).__module__ and hasattr(each, "__dict__"):
                yield from _states(each)


def _undecoded(rows: datasets.IterableDataset, reader: RowReader) -> datasets.IterableDataset:
    """The stream with pictures as they are stored, where its features say which columns they are.

    So rows of other processes are not decoded, and errors name the file.
    """
    if rows.features is None:
        return rows
    kinds = kinds_of_features(rows.features)
    if kinds.get("pixel_values") == "tensor":
        return rows.with_format("numpy")
    image, mask = find_columns(kinds, reader.where, reader.names, labelled=reader.scheme is not None)
    columns = [column for column in (image, mask, "image_id", "__key__") if column in rows.features]
    if not all(isinstance(rows.features[column], datasets.Image) for column in (image, mask) if column is not None):
        return rows
    return rows.with_format(None).decode(False).select_columns(columns)
