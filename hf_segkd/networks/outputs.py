"""`dense_logits`: logits for each pixel of a transformers model; `image_channels`, `task_inputs`: what it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, OneFormerConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES

from hf_segkd.losses.base import at_least_float32
from hf_segkd.networks.feature_paths import described

# Height and width of the image a network is tried on when its config asks for no size.
TRIAL_SIZE = 64
# Channels of pictures, and of networks whose config says nothing of channels.
RGB = 3
# OneFormer's processor turns the task "semantic" into this sentence.
ONEFORMER_TASK = "the task is semantic"


def predicts_masks(config: PreTrainedConfig) -> bool:
    """Whether the segmentation model of a config gives masks with their classes, and no logits for each pixel."""
    return config.model_type in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES


def query_log_probabilities(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Log probability of each class at each pixel, from queries that each have a mask and a class.

    The processors' `post_process_semantic_segmentation` scores class k at pixel p by
    s_kp = sum over q of softmax(class_logits)_qk * sigmoid(mask_logits)_qp, without the last class, which says that a
    query found nothing. Here it is log(s_kp / sum over k of s_kp): the order of the classes is the same, a softmax
    gives the normalised scores, and a temperature T makes them p^(1/T), as it does with dense logits.

    With r_qk the softmax over only the real classes and a_q the probability that the query found something,
    s_kp / sum_k s_kp = sum over q of r_qk * softmax over q of (log a_q + log sigmoid(mask_logits)_qp): nothing is
    divided by a sum that may vanish. A class of probability 0 gets the log of the smallest normal float32, -87.3.

    Args:
        class_logits: (b, q, k + 1), "nothing" last.
        mask_logits: (b, q, h, w).

    Returns:
        (b, k, h, w) in fp32 (fp64 from fp64).
    """
    with torch.autocast(device_type=mask_logits.device.type, enabled=False):
        class_logits, mask_logits = at_least_float32(class_logits), at_least_float32(mask_logits)
        real = class_logits[..., :-1]
        found = real.logsumexp(-1) - class_logits.logsumexp(-1)
        shares = (found[..., None, None] + nn.functional.logsigmoid(mask_logits)).softmax(1)
        probabilities = torch.einsum("bqk,bqhw->bkhw", real.softmax(-1), shares)
        return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def dense_logits(model: nn.Module, output: Any) -> Tensor:
    """The logits of a model's output, or what `query_log_probabilities` makes of its masks and their classes.

    Raises:
        ValueError: If the output holds neither.
    """
    if getattr(output, "class_queries_logits", None) is not None:
        return query_log_probabilities(output.class_queries_logits, output.masks_queries_logits)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        raise ValueError(
            f"{type(model).__name__} gives neither logits (b, k, h, w) nor class_queries_logits and "
            f"masks_queries_logits; its logits are {described(logits)}. A teacher or student must be a model of "
            "AutoModelForSemanticSegmentation, or MaskFormer, Mask2Former, OneFormer or EoMT."
        )
    return logits


def trial_size(config: PreTrainedConfig, default: int = TRIAL_SIZE) -> tuple[int, int]:
    """Height and width of an image that a network takes: the one in its config, else `default` squared."""
    size = getattr(config, "image_size", None) or default
    return (size, size) if isinstance(size, int) else tuple(size)


def image_channels(config: PreTrainedConfig) -> int:
    """Channels of the images that a network takes: `num_channels` of its configuration or of its backbone's, else 3."""
    for part in (config, getattr(config, "backbone_config", None)):
        channels = getattr(part, "num_channels", None)
        if isinstance(channels, int):
            return channels
    return RGB


def task_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """OneFormer's task as its processor writes it: token ids (1, length), 0 behind the end; nothing for others.

    Raises:
        ValueError: If no tokenizer lies beside the model.
    """
    if not isinstance(model.config, OneFormerConfig):
        return {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            "OneFormer is told its task in words, and no tokenizer was found beside the model. Pass "
            "FeatureNetwork(model, inputs={'task_inputs': ...}) with the task_inputs of OneFormerProcessor for "
            "['semantic'], or save the processor beside the model."
        ) from error
    tokens = tokenizer(
        ONEFORMER_TASK, padding="max_length", max_length=model.config.task_seq_len, truncation=True, return_tensors="pt"
    )
    return {"task_inputs": tokens["input_ids"] * tokens["attention_mask"]}


def check_several_classes(config: PreTrainedConfig) -> None:
    """Make sure that a network has two classes at least, which hf_segkd's own are built with.

    Raises:
        ValueError: If it has one.
    """
    if config.num_labels < 2:
        raise ValueError(
            f"The network ({config.model_type}) has {config.num_labels} class, and num_labels must be at least 2: the "
            "scores are those of a softmax, which is 1 over a single class, so that one foreground class needs a "
            "background class beside it. Build the network with num_labels=2 (id2label={0: 'background', 1: ...}), "
            "and load the data with these two classes; binary masks of 0 and 255 are read with ids={0: 0, 255: 1}."
        )
