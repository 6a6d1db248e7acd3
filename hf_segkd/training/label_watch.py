"""`LabelWatch`: what the labels are of training images that are not read before training begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from hf_segkd.data import LabelAccount, LabelInfo, class_names, voc_palette
from hf_segkd.data.account import NUM_SAMPLES
from hf_segkd.data.labels import IGNORE_INDEX

logger = logging.get_logger(__name__)


class LabelWatch:
    """Warns of what looks like a mistake in the first labels of a run, and refuses a run that saw none.

    Args:
        config: The student's.
        warns: Whether to warn; the masks of a stream are counted where they are read.
    """

    def __init__(self, config: Any, warns: bool) -> None:
        names = class_names(config.id2label)
        info = LabelInfo.from_names("train_dataset", names, voc_palette(len(names)))
        self._ignored = config.semantic_loss_ignore_index
        self._account = LabelAccount(info, None) if warns else None
        self._labelled: Tensor | None = None

    def begin(self) -> None:
        """Forget whether a label was seen, for another run."""
        self._labelled = None

    def see(self, labels: Tensor) -> None:
        """Count the labels of a batch, (b, h, w), until the first images are counted."""
        if self._account is None:
            return
        no_class = self._account.labels.ignore_index
        for image in labels[: NUM_SAMPLES - self._account.num_read].cpu().numpy():
            numbers = np.where(image == self._ignored, no_class, image.astype(np.int64))
            annotation = Image.fromarray(numbers.astype(np.uint8 if no_class <= IGNORE_INDEX else np.uint16))
            annotation.info = {"numbers": None, "colours": None}
            self._account.add(annotation)
        if self._account.num_read == NUM_SAMPLES:
            for suspicion in self._account.suspicions():
                logger.warning(suspicion)
            self._account = None

    def add(self, labelled: Tensor) -> None:
        """Add the labelled pixels of a step, of all processes."""
        self._labelled = labelled if self._labelled is None else torch.maximum(self._labelled, labelled)

    def require_labels(self) -> None:
        """Refuse the student of a run in which there was nothing to learn from.

        Raises:
            ValueError: If there were steps, and not one pixel had a class.
        """
        if self._labelled is not None and not self._labelled.item():
            raise ValueError(
                "train_dataset: not one pixel of the images of this run has a class, so nothing was learnt. Is a class "
                "taken for none, or are the masks of another data set?"
            )
