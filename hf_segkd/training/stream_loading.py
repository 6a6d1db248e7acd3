"""`stream_loader`: batches of a stream; `counted_once`: the result of an evaluation of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from hf_segkd.data import EvaluationStream, TrainingStream
from hf_segkd.training.arguments import DistillationArguments


def stream_loader(
    stream: TrainingStream | EvaluationStream,
    args: DistillationArguments,
    batch_size: int,
    collate: Callable[[list[Any]], dict[str, Any]],
    device: torch.device,
) -> DataLoader:
    """Batches of a process's share of a stream.

    accelerate would read streams in the first process and send their parts to the others, for which all images need one
    size; or repeat images so that all processes have equally many, and count them twice.

    Args:
        stream: The share.
        args: Arguments of the run.
        batch_size: Images in a batch.
        collate: Makes a batch.
        device: Where batches are put.
    """
    # The context and the order are arguments since transformers 5.16.
    loader = DataLoader(
        stream,
        batch_size,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=vars(args).get("dataloader_multiprocessing_context"),
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=vars(args).get("dataloader_in_order", True),
    )
    return prepare_data_loader(
        loader, device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )


def counted_once(output: EvalLoopOutput, stream: EvaluationStream) -> EvalLoopOutput:
    """The result of an evaluation without the images that were added to a stream, whose loss is 0.

    Raises:
        ValueError: If there was no image.
    """
    if not stream.num_images:
        raise ValueError(
            f"A data set without images has no score: {stream.source.reader.where} is empty, or a stream that can be "
            "read only once and was."
        )
    metrics = {
        name: value * stream.num_given / stream.num_images if name.endswith("_loss") else value
        for name, value in output.metrics.items()
    }
    return output._replace(metrics=metrics, num_samples=stream.num_images)
