"""Which training files could not be read, over all workers and processes."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from transformers.utils import logging

from hf_segkd.data import AugmentedDataset

logger = logging.get_logger(__name__)


def unreadable_images(images: Any, accelerator: Accelerator) -> list[str]:
    """`image_id` of each training image that was left out, and a warning with their number; call it on all processes.

    Empty where bad images stop the training, and for data sets that are not ours.
    """
    if not isinstance(images, AugmentedDataset) or images.bad_images != "skip":
        return []
    found = accelerator.reduce(images.unreadable.int().to(accelerator.device), reduction="sum").cpu()
    unreadable = [images.name_of(index) for index in found.nonzero().flatten().tolist()]
    if unreadable and accelerator.is_main_process:
        shown = ", ".join(unreadable[:10]) + (", ..." if len(unreadable) > 10 else "")
        logger.warning(f"{len(unreadable)} of {len(found)} training images could not be read: {shown}.")
    return unreadable
