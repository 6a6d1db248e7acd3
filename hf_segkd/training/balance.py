"""`balance_classes`: sets class weights and repeat factors by the labels of the training images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers.utils import logging

from hf_segkd.data import AugmentedDataset
from hf_segkd.data.class_balance import count_classes, repeat_factors
from hf_segkd.losses.labels import LabelLosses, class_weights
from hf_segkd.training.arguments import DistillationArguments

logger = logging.get_logger(__name__)


def balance_classes(
    label_losses: LabelLosses | None, train_dataset: Any, args: DistillationArguments, accelerator: Accelerator
) -> None:
    """Count the labels where `args` asks for it, and set weights of the classes and factors of the images by them.

    Args:
        label_losses: Its `class_weights` are set, if `args.class_weights` is a word.
        train_dataset: Its `repeat_factors` are set, if `args.repeat_threshold` is above 0.
        args: Arguments of the run.
        accelerator: The run's accelerator; its processes share the masks.

    Raises:
        ValueError: If the training images are not from `load_segmentation_dataset`, or have no labels.
    """
    weighted = isinstance(args.class_weights, str)
    if not weighted and not args.repeat_threshold:
        return
    if not isinstance(train_dataset, AugmentedDataset) or not train_dataset.has_labels:
        asked = f"class_weights {args.class_weights!r}" if weighted else f"repeat_threshold {args.repeat_threshold}"
        raise ValueError(
            f"{asked} is made of the labels of a data set of load_segmentation_dataset, and train_dataset is "
            f"{_what(train_dataset)}. Give class_weights as numbers, one for each class, or leave it out."
        )
    counts = _counts(train_dataset, args, accelerator)
    if weighted:
        weights = class_weights(counts.sum(0), args.class_weights)
        label_losses.class_weights.copy_(torch.tensor(weights))
        logger.info(f"Class weights, {args.class_weights}: {', '.join(f'{weight:.3g}' for weight in weights)}.")
    if args.repeat_threshold:
        train_dataset.repeat_factors = repeat_factors(counts, args.repeat_threshold)


def _what(images: Any) -> str:
    return "one without labels" if isinstance(images, AugmentedDataset) else f"a {type(images).__name__}"


def _counts(images: AugmentedDataset, args: DistillationArguments, accelerator: Accelerator) -> np.ndarray:
    """Pixels of each class in each mask, (n, k)."""
    rows = range(accelerator.process_index, len(images.dataset), accelerator.num_processes)
    progress = accelerator.is_main_process and not args.disable_tqdm
    counts = torch.from_numpy(count_classes(images.dataset, rows, args.dataloader_num_workers, progress))
    return accelerator.reduce(counts.to(accelerator.device), reduction="sum").cpu().numpy()
