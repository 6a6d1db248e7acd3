"""One image through a network, as every user of it gets it."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel


def predict(model: PreTrainedModel, processor: Any, image: Image.Image) -> torch.Tensor:
    """Class of each pixel of an image, (h, w) int64, as the pipeline and the evaluation give it."""
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        output = model(pixel_values=inputs["pixel_values"])
    return processor.post_process_semantic_segmentation(output, target_sizes=[image.size[::-1]])[0]
