"""One image through a network, as every user of it gets it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from hf_segkd.data.whole_images import whole_image


def predict(model: nn.Module, processor: Any, image: Image.Image) -> torch.Tensor:
    """Class of each pixel of an image, (h, w) int64, as the pipeline and the evaluation give it.

    Args:
        model: A network that gives logits for each pixel; one that predicts masks as a `ForeignNetwork`.
        processor: Its image processor.
        image: The image.

    Raises:
        ValueError: If the processor cuts off, splits or pads images.
    """
    pixel_values = whole_image(processor, image)[None].to(model.device)
    with torch.inference_mode():
        logits = model(pixel_values=pixel_values).logits.float()
    height, width = image.size[1], image.size[0]
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)[0].argmax(0)
