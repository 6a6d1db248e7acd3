"""From logits to the class of each pixel, as every user of a network gets it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from hf_segkd.data.image_processors import whole_image


def predict(model: nn.Module, processor: Any, image: Image.Image) -> torch.Tensor:
    """Class of each pixel of an image, (h, w) int64, as the pipeline and the evaluation give it.

    Args:
        model: A network that gives logits for each pixel; one that predicts masks as a `FeatureNetwork`.
        processor: Its image processor.
        image: The image.

    Raises:
        ValueError: If the processor cuts off, splits or pads images.
    """
    pixel_values = whole_image(processor, image)[None].to(model.device)
    with torch.inference_mode():
        logits = model(pixel_values=pixel_values).logits
    return logits_at(logits, (image.height, image.width))[0].argmax(0)


def logits_at(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Logits (b, k, h, w) at the `size` (height, width) of an image or of its labels, in float32.

    As the image processor's `post_process_semantic_segmentation` resizes them, so that scores are those of the masks.
    """
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
