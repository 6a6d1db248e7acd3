"""`training_stream`: the trainer's input made from streams; `unlabelled_images`: those of any data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import datasets
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import IterableDataset
from transformers.utils import logging

from hf_segkd.data import EvaluationStream, TrainingStream, TrainTransform, without_labels
from hf_segkd.data.columns import ColumnNames
from hf_segkd.data.decoding import ImagesAlone
from hf_segkd.data.own_datasets import as_loaded, is_loaded
from hf_segkd.data.rows import RowReader
from hf_segkd.data.stream_sources import Source
from hf_segkd.losses import LOSSES, AbstractDistillationLoss
from hf_segkd.training.arguments import DistillationArguments

logger = logging.get_logger(__name__)


class SourceMaker(Protocol):
    """Makes the source of a stream."""

    def __call__(self, where: str, rows: Any, labelled: bool) -> Source:
        """From what errors call it, the stream, and whether its masks are read."""


def training_stream(
    dataset: Any,
    unlabelled: Any,
    args: DistillationArguments,
    transform_for: Callable[[], TrainTransform],
    make_source: SourceMaker,
    loss: AbstractDistillationLoss | None,
) -> TrainingStream:
    """Random crops of a stream, or of a data set that a stream of unlabelled images is mixed into.

    Args:
        dataset: A stream, or with `unlabelled` a data set of `load_segmentation_dataset`.
        unlabelled: Images without labels, a stream or as `unlabelled_images` gives them; or None.
        args: Arguments of the run.
        transform_for: Makes the augmentation of images; raises a `ValueError` where it is not known.
        make_source: Makes the source of a stream.
        loss: The distillation loss, None without one.

    Raises:
        ValueError: If `args.max_steps` is missing, a stream is split
            already, labels are needed and missing, or a mixed stream has fewer shards than workers.
    """
    if isinstance(dataset, TrainingStream):
        return dataset
    for where, rows in {"train_dataset": dataset, "unlabelled_dataset": unlabelled}.items():
        if is_stream(rows) and args.max_steps <= 0:
            raise ValueError(
                f"{where} is a stream ({type(rows).__name__}), whose length is not known: set max_steps, the number of "
                "optimizer steps. A stream that ends before is read again from its start."
            )
    seed = args.seed if args.data_seed is None else args.data_seed
    if is_stream(dataset):
        source = make_source("train_dataset", dataset, labelled=True)
        if source.is_known_to_lack_masks:
            refuse_need_of_labels(loss, f"the images of train_dataset ({', '.join(dataset.column_names)}) have")
    else:
        source = Source(dataset, RowReader("train_dataset", None), seed)
    other = None
    if is_stream(unlabelled):
        other = make_source("unlabelled_dataset", unlabelled, labelled=False)
    elif unlabelled is not None:
        other = Source(unlabelled, RowReader("unlabelled_dataset", None), seed)
    _check_shards(source, other, args.dataloader_num_workers)
    try:
        transform = transform_for()
    except ValueError:
        if not source.may_give_tensors:
            raise
        transform = None  # tensors need none
    return TrainingStream(source, transform, seed, other, args.unlabelled_ratio, args.bad_images)


def unlabelled_images(dataset: Any, where: str, names: ColumnNames, num_channels: int | None) -> datasets.Dataset:
    """The images of any data set with a length, without its labels, read as those of this package.

    Raises:
        ValueError: If there is no column of images, or it gives tensors.
    """
    if not is_loaded(dataset):
        dataset = as_loaded(dataset, where, None, names, num_channels)
        if not is_loaded(dataset):
            raise ValueError(
                f"{where} gives tensors (pixel_values), and images are mixed before they are augmented: take its "
                "transform away (with_format(None)), or let it give pictures."
            )
    transform = dataset.format["format_kwargs"].get("transform")
    return dataset if isinstance(transform, ImagesAlone) else without_labels(dataset)


def require_one_order(stream: TrainingStream | EvaluationStream, accelerator: Accelerator) -> None:
    """Make sure that all processes read a stream in one order: each takes its share of it.

    Raises:
        ValueError: On every process, if the orders differ.
    """
    if accelerator.num_processes > 1:
        orders = gather_object([stream.order])
        if any(order != orders[0] for order in orders):
            raise ValueError(
                "The processes would read the stream in different orders, so that images came twice or never: it is "
                "shuffled without a seed. Give it one, the same in all processes: stream.shuffle(seed=0, ...)."
            )


def is_stream(rows: Any) -> bool:
    """Whether a data set has rows to iterate over, and no row of a number."""
    return isinstance(rows, datasets.IterableDataset | IterableDataset)


def dataset_name(rows: Any) -> str:
    """What reports and errors call the classes of a stream."""
    return str(rows.info.dataset_name or "own data") if isinstance(rows, datasets.IterableDataset) else _kind(rows)


def refuse_splits(name: str, images: Any) -> None:
    """Make sure that one split is given.

    Raises:
        ValueError: If there are several.
    """
    if isinstance(images, dict):  # datasets.DatasetDict too
        raise ValueError(f"{name} holds the splits {', '.join(map(str, images))}; pass one of them.")


def refuse_need_of_labels(loss: AbstractDistillationLoss | None, what: str) -> None:
    """Make sure that a student can learn from images without labels.

    Args:
        loss: The distillation loss, None without one.
        what: What has no labels, for the message.

    Raises:
        ValueError: If there is no loss, or its terms depend on the labels.
    """
    if loss is not None and not loss.needs_labels:
        return
    able = ", ".join(name for name, kind in LOSSES.items() if not kind.needs_labels)
    reason = (
        "With method 'none' the student learns from labels alone"
        if loss is None
        else f"Method {loss.name!r}, as it is set, compares student and teacher by the labels"
    )
    raise ValueError(f"{reason}, and {what} no labels. Methods that need none: {able}.")


def _check_shards(source: Source, unlabelled: Source | None, workers: int) -> None:
    """Tell of workers that would have nothing to read, and refuse them where two streams go together."""
    for each in (source, *([] if unlabelled is None else [unlabelled])):
        if workers > 1 and is_stream(each.rows) and each.num_shards is None:
            logger.warning(
                f"{each.reader.where} is a {_kind(each.rows)}, which each of {workers} workers reads: unless it takes "
                "only its worker's share (torch.utils.data.get_worker_info), every image comes so many times."
            )
        if each.num_shards is None or each.num_shards >= workers:
            continue
        few = f"{each.reader.where} has {each.num_shards} shards, fewer than the {workers} dataloader_num_workers"
        if unlabelled is not None:
            raise ValueError(f"{few}, and a worker without a shard can't mix. Set dataloader_num_workers lower.")
        logger.warning(f"{few}: {workers - each.num_shards} of them have nothing to do.")


def _kind(rows: Any) -> str:
    return type(rows).__name__
