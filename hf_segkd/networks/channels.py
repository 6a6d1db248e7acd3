"""`check_images`, `check_processor`, `check_teacher`: networks, processors and images must agree on the channels."""

from __future__ import annotations

from typing import Any

import datasets
from transformers import PreTrainedConfig

from hf_segkd.data import stored_channels
from hf_segkd.data.image_processors import num_bands
from hf_segkd.networks.outputs import RGB, image_channels


def check_processor(config: PreTrainedConfig, processor: Any) -> None:
    """Make sure that a network takes as many channels as its image processor gives.

    Raises:
        ValueError: If not.
    """
    takes, gives = image_channels(config), num_bands(processor) or RGB
    if takes != gives:
        raise ValueError(
            f"The network ({config.model_type}) takes images of {takes} channels, and its image processor "
            f"({type(processor).__name__}) gives {gives}. {_how_to_set(config, gives)}"
        )


def check_images(config: PreTrainedConfig, processor: Any, images: datasets.Dataset) -> None:
    """Make sure that a data set's images are read as a network and its image processor take them.

    Raises:
        ValueError: If not; the message says what to set.
    """
    read, given = stored_channels(images), num_bands(processor)
    if read is not None and given is None:
        raise ValueError(
            f"The images are read in {read} bands as they are stored (num_channels), and {type(processor).__name__} "
            "takes RGB pictures of 8 bits. Count mean and std with `hf-segkd count_statistics`, and pass them as "
            "--image_statistics, or in Python to hf_segkd.models.MultiBandImageProcessor."
        )
    if read != given:
        raise ValueError(
            f"The image processor takes images of {given} bands as they are stored, and the data set reads "
            f"{'RGB pictures of 8 bits' if read is None else f'{read} bands'}. Load it with num_channels={given}."
        )
    check_processor(config, processor)


def check_teacher(teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
    """Make sure that a teacher takes the student's images.

    Raises:
        ValueError: If it takes images of another number of channels.
    """
    taught, learnt = image_channels(teacher), image_channels(student)
    if taught != learnt:
        raise ValueError(
            f"The teacher ({teacher.model_type}) takes images of {taught} channels, and the student "
            f"({student.model_type}) of {learnt}. Both see the same crops, so that a teacher must be trained on the "
            "student's bands."
        )


def _how_to_set(config: PreTrainedConfig, channels: int) -> str:
    if getattr(config, "num_channels", None) is not None:
        return f"Build the network with num_channels={channels}."
    if getattr(config, "backbone_config", None) is not None:
        return f"Build the network with a backbone_config that has num_channels={channels}, if its type has that field."
    return f"The configuration of a {config.model_type} has no num_channels: it takes RGB alone."
