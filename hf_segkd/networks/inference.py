"""`predict`, `logits_at`, `classes_at`: the class of each pixel from the logits of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from hf_segkd.data.image_processors import whole_image
from hf_segkd.models.modeling_segmentation import SegKDSegmentationModel
from hf_segkd.networks.tiles import tiled_logits

# With fewer classes at once PyTorch would interpolate by another kernel, with other last digits.
CLASSES_AT_ONCE = 8
# Up to this many logits at the size of an image, 64 MiB, saving memory is not worth it.
FEW_LOGITS = 2**24


def predict(
    model: nn.Module,
    processor: Any,
    image: Image.Image,
    tile: int | Sequence[int] | None = None,
    overlap: int | None = None,
) -> Tensor:
    """Class of each pixel of an image, (h, w) int64, as the pipeline and the evaluation give it.

    Beyond what the network itself takes, memory grows by the pixels of the image, and not by its classes.

    Args:
        model: A network that gives logits for each pixel; a `FeatureNetwork` of one that predicts masks.
        processor: Its image processor.
        image: The image.
        tile: Side, or height and width, of tiles that the network sees one by one, in pixels of the processed image;
            its own memory is then that of a tile. By default it sees the whole image.
        overlap: Pixels that neighbouring tiles have in common; by default a quarter of a tile's side.

    Raises:
        ValueError: If the processor cuts off, splits or pads images, or the tiles or their overlap are not valid.
    """
    size = (image.height, image.width)
    pixel_values = whole_image(processor, image)[None].to(model.device)
    # Networks of hf_segkd resize their logits to the image by default.
    options, align_corners = {}, None
    if isinstance(model, SegKDSegmentationModel) and model.config.num_labels * pixel_values[0, 0].numel() > FEW_LOGITS:
        options, align_corners = {"resize_logits": False}, model.config.align_corners

    def logits_of(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(pixel_values=images, **options).logits

    if tile is None:
        return classes_at(logits_of(pixel_values), size, tuple(pixel_values.shape[-2:]), align_corners)[0]
    classes = torch.empty(size, dtype=torch.int64, device=model.device)
    for rows, columns, logits in tiled_logits(logits_of, pixel_values, size, tile, overlap, align_corners):
        classes[rows, columns] = logits.max(0).indices
    return classes


def logits_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (b, k, h, w) at the `size` (height, width) of an image or of its labels, in float32.

    They are resized as by the image processor's `post_process_semantic_segmentation`, so that scores match its masks.
    """
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def classes_at(
    logits: Tensor, size: tuple[int, int], image_size: tuple[int, int] | None = None, align_corners: bool | None = None
) -> Tensor:
    """`logits_at(logits, size).argmax(1)`, (b, h, w) int64, without ever holding all classes at that size.

    With equal logits the lowest class wins. A few classes are resized at a time, so only memory differs.

    Args:
        logits: (b, k, h4, w4).
        size: Height and width of the result.
        image_size: Size of the image that the network saw; used with `align_corners`.
        align_corners: Resize the logits to the image first, with this `align_corners`, as networks of hf_segkd do
            themselves by default; None does not.
    """
    best = logits.new_full((len(logits), *size), -torch.inf, dtype=torch.float32)
    classes = torch.zeros_like(best, dtype=torch.int64)
    layout = torch.channels_last if logits.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    num_labels = logits.shape[1]
    starts = range(0, max(num_labels - CLASSES_AT_ONCE, 0) + 1, CLASSES_AT_ONCE)
    for first, last in zip(starts, [*starts[1:], num_labels], strict=True):
        part = logits[:, first:last].contiguous(memory_format=layout)
        if align_corners is not None:
            part = F.interpolate(part, size=image_size, mode="bilinear", align_corners=align_corners)
        if part.shape[-2:] != size:
            part = logits_at(part, size)
        for index in range(first, last):
            values = part[:, index - first].float()
            classes.masked_fill_(values > best, index)
            torch.maximum(best, values, out=best)
        del part, values  # before there are others
    return classes
