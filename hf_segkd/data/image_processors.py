"""`whole_image`: applies an image processor; `fixed_size`, `normalisation`: how it changes images."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Pixels of an image, (c, h, w) float32 at the size that its image processor gives.

    Raises:
        ValueError: If the processor does not keep the whole image.
    """
    check_keeps_whole_images(processor)
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


def num_bands(processor: Any) -> int | None:
    """Number of bands of images that the processor takes as they are stored; None if it takes RGB pictures."""
    return getattr(processor, "num_bands", None)


def fixed_size(processor: Any) -> tuple[int, int] | None:
    """(height, width) that an image processor resizes every image to; None if it depends on the image."""
    size = processor.size if processor.do_resize else {}
    height, width = size.get("height"), size.get("width")
    return None if height is None or width is None else (height, width)


def normalisation(processor: Any) -> dict[str, Any]:
    """`image_mean`, `image_std` and `rescale_factor` that the processor applies to pixels of 0 to 255."""
    return {
        "image_mean": _of_channels(processor.image_mean) if processor.do_normalize else [0.0, 0.0, 0.0],
        "image_std": _of_channels(processor.image_std) if processor.do_normalize else [1.0, 1.0, 1.0],
        "rescale_factor": processor.rescale_factor if processor.do_rescale else 1.0,
    }


def reverses_channels(processor: Any) -> bool:
    """Whether the processor gives BGR, as MobileViT's does, where all others give RGB."""
    return bool(getattr(processor, "do_flip_channel_order", False))


def _of_channels(value: float | Sequence[float]) -> list[float]:
    return [value] * 3 if isinstance(value, int | float) else list(value)
