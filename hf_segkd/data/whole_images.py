"""A whole image as an image processor prepares it: nothing cut off, nothing added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing transformers takes longer than all the rest together
    from PIL import Image
    from torch import Tensor

_REASONS = {
    "do_center_crop": "cuts off what is outside the centre",
    "do_split_image": "splits it into patches",
    "do_pad": "adds a border",
}


def check_keeps_whole_images(processor: Any) -> None:
    """Make sure that an image processor at most resizes: logits of its pixels, resized, then lie on the image.

    Raises:
        ValueError: If it cuts off, splits or pads.
    """
    for option, reason in _REASONS.items():
        if getattr(processor, option, False):
            raise ValueError(
                f"The image processor ({type(processor).__name__}) has {option}: it {reason}, so that logits would lie "
                f"on other pixels of the image than they are of. Set {option} to False (in its "
                "preprocessor_config.json); for a network of one size also size to a height and a width."
            )


def whole_image(processor: Any, image: Image.Image) -> Tensor:
    """Pixels of an image, (3, h, w) float32 at the size that its image processor gives.

    Raises:
        ValueError: If the processor does not keep the whole image.
    """
    check_keeps_whole_images(processor)
    return processor(images=image, return_tensors="pt")["pixel_values"][0]
