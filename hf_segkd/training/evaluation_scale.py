"""`scale_base`, `warn_of_other_scale`: scale 1 of training is what evaluation sees, or a warning gives both sizes."""

from __future__ import annotations

from typing import Any, Literal

import datasets
from transformers.utils import logging

from hf_segkd.data.image_files import UnreadableImageError
from hf_segkd.data.image_processors import fixed_size, whole_image

logger = logging.get_logger(__name__)

TOLERANCE = 0.05  # of a side: processors round, and some go to a multiple of 32


def scale_base(processor: Any) -> int | Literal["image"]:
    """Short side in pixels that whole images are resized to for evaluation; "image" where they keep their own size.

    Args:
        processor: The student's image processor.
    """
    if (fixed := fixed_size(processor)) is not None:
        return min(fixed)
    size = processor.size if processor.do_resize else {}
    return size.get("shortest_edge") or "image"


def warn_of_other_scale(images: datasets.Dataset, base: int | Literal["image"], processor: Any) -> None:
    """Warn if evaluation shows one of three images at another size than scale 1 of training, or in another shape.

    Args:
        images: With a column `image`; files that cannot be read are passed over.
        base: Short side of scale 1 in pixels, or "image".
        processor: The student's image processor.
    """
    for row in sorted({0, len(images) // 2, len(images) - 1}) if len(images) else ():
        try:
            image = images[row]["image"]
        except UnreadableImageError:  # training tells of it, or leaves it out
            continue
        scale = 1 if base == "image" else base / min(image.size)
        trained = tuple(round(side * scale) for side in (image.height, image.width))
        evaluated = tuple(whole_image(processor, image).shape[1:])
        if any(abs(one - other) > max(1, TOLERANCE * one) for one, other in zip(evaluated, trained, strict=True)):
            logger.warning(
                f"At scale 1 training shows image {row} ({_size(image.size[::-1])}) as {_size(trained)}, evaluation as "
                f"{_size(evaluated)} (height x width): the student learns from objects of another size or shape than "
                "it is scored on. Let the image processor keep the images' aspect ratio (image_size of the images' "
                f"own shape, or none), or choose scale_base (now {base}) to lie between."
            )
            return


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
