"""`PictureLog`: pictures of validation images during training, in TensorBoard, trackio and wandb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import datasets
import numpy as np
from PIL import Image
from torch import nn
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from hf_segkd.data import EvaluationDataset, evenly_spread
from hf_segkd.publishing.publication import compare

TRACKERS = (TensorBoardCallback, TrackioCallback, WandbCallback)


class PictureLog(TrainerCallback):
    """Sends a picture for each of some validation images after each evaluation: image, truth, teacher and student.

    They are called `eval/picture_0` and so on, of several evaluation sets `eval/NAME_picture_0`, and have the step of
    the evaluation, so that a tracker's slider shows how the student learns.

    Args:
        number: Number of images, evenly spread over each evaluation set.
        eval_dataset: The trainer's: a data set, or a dict of data sets.
        trackers: The callbacks of the run, of which those of TensorBoard, trackio and wandb get the pictures.
        networks: Gives a context, inside which it is column title -> network and image processor, to be drawn.

    Raises:
        ValueError: If no tracker takes pictures, or the images are not of `load_segmentation_dataset`.
    """

    def __init__(
        self,
        number: int,
        eval_dataset: Any,
        trackers: Sequence[TrainerCallback],
        networks: Callable[[], AbstractContextManager[Mapping[str, tuple[nn.Module, Any]]]],
    ) -> None:
        self.networks = networks
        self.trackers = [tracker for tracker in trackers if isinstance(tracker, TRACKERS)]
        if not self.trackers:
            raise ValueError(
                "log_pictures has no tracker to send pictures to: set report_to to tensorboard, trackio or wandb, or "
                "leave it out."
            )
        sets = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
        for images in sets.values():
            if not isinstance(images, EvaluationDataset):
                raise ValueError(
                    "log_pictures draws images of load_segmentation_dataset with their truth, and eval_dataset is "
                    f"{'missing' if images is None else 'a ' + type(images).__name__}. Leave it out."
                )
        self.samples: dict[str, datasets.Dataset] = {
            f"{name}_" * bool(name): evenly_spread(images.dataset, number) for name, images in sets.items()
        }

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Draw and send the pictures of the set that was evaluated; trackers are set up by then, for its scores."""
        if not state.is_world_process_zero:
            return
        for prefix, samples in self.samples.items():
            if f"eval_{prefix}loss" not in metrics:
                continue
            with self.networks() as networks:
                rows = [samples.select([index]) for index in range(len(samples))]
                pictures = {f"eval/{prefix}picture_{i}": compare(row, networks) for i, row in enumerate(rows)}
            for tracker in self.trackers:
                _send(tracker, pictures, state.global_step)


def _send(tracker: TrainerCallback, pictures: Mapping[str, Image.Image], step: int) -> None:
    if isinstance(tracker, TensorBoardCallback):
        for name, picture in pictures.items():
            tracker.tb_writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
        tracker.tb_writer.flush()
        return
    library = tracker._wandb if isinstance(tracker, WandbCallback) else tracker._trackio
    images = {name: library.Image(picture) for name, picture in pictures.items()}
    library.log({**images, "train/global_step": step})  # as Trainer's callbacks log scores
