"""The flags that name a data set, shared by the commands that read one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from hf_segkd.data import load_segmentation_dataset
from hf_segkd.training.arguments import json_object


@dataclass(kw_only=True)
class DataFlags:
    """Arguments of `load_segmentation_dataset`, all but the split."""

    dataset: str = field(metadata={"help": "Name of the data set, see load_segmentation_dataset."})
    data_dir: str | None = field(default=None, metadata={"help": "Its folder."})
    hub_id: str | None = field(default=None, metadata={"help": "A copy of the data set on the Hub."})
    dataset_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of load_segmentation_dataset, as a JSON object."}
    )

    def __post_init__(self) -> None:
        self.dataset_options = json_object(self.dataset_options, "dataset_options")

    @property
    def num_channels(self) -> int | None:
        """Number of bands that images are read with as they are stored; None for RGB."""
        return self.dataset_options.get("num_channels")

    def load(self, split: str) -> datasets.Dataset:
        """One split of the data set."""
        return load_segmentation_dataset(self.dataset, self.data_dir, split, hub_id=self.hub_id, **self.dataset_options)

    def source(self, split: str) -> dict[str, Any]:
        """What a report says of where its images came from, so that they can be found again."""
        data_dir = None if self.data_dir is None else str(Path(self.data_dir).absolute())
        flags = {"dataset": self.dataset, "data_dir": data_dir, "hub_id": self.hub_id}
        return {**flags, "dataset_options": self.dataset_options, "split": split}
