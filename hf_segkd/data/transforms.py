"""The joint random scale, crop and flip of image and annotation, with which all segmentation papers train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .labels import IGNORE_INDEX
from .multiband import MultiBandImage
from .photometric import PhotoMetricDistortion, RandomBlur

PHOTOMETRIC = {"blur": RandomBlur(), "jitter": PhotoMetricDistortion()}
MAX_REDRAWS = 10  # mmsegmentation's RandomCrop, which then takes the last crop as it is


@dataclass(frozen=True)
class CropWindow:
    """A crop of a scaled image. All sizes are (height, width) in pixels.

    Args:
        scaled_size: Size of the whole image after scaling.
        corner: Top and left edge of the crop in the scaled image.
        size: Size of the crop without padding; never reaches beyond the scaled image.
    """

    scaled_size: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    def cut(self, image: Image.Image | MultiBandImage, resample: Image.Resampling) -> Image.Image | MultiBandImage:
        """The crop, resampled only from its source region.

        PIL's filters look beyond the region where the image goes on there, so every pixel has the value that
        scaling the whole image and then cropping would give it.
        """
        vertical = image.height / self.scaled_size[0]  # source pixels per scaled pixel
        horizontal = image.width / self.scaled_size[1]
        (top, left), (height, width) = self.corner, self.size
        # min: rounding must not put the edge outside the image.
        right = min((left + width) * horizontal, image.width)
        bottom = min((top + height) * vertical, image.height)
        return image.resize((width, height), resample, box=(left * horizontal, top * vertical, right, bottom))


class TrainTransform:
    """Random scale, crop, flip and photometric change, then normalisation.

    The crop is drawn first and only its source region is resized: the same distribution as resizing the whole
    image and cropping, at a fraction of the work. Where the scaled image is smaller than the crop, it is padded to
    the right and below with the mean colour (0 after normalisation) and the ignored label.

    Args:
        crop_size: Height and width of the result, in pixels.
        scale_range: Smallest and largest scale; (0.5, 2.0) in the AttnFD and FAKD papers.
        scale_base: "image": the scale multiplies the image's own size. An int: the short side
            becomes a uniform random integer of `scale_range` times this number of pixels (AttnFD's code, 513).
        flip_probability: Probability of a horizontal flip.
        photometric: "none"; "blur", AttnFD's `RandomBlur`; "jitter", mmsegmentation's `PhotoMetricDistortion`; or
            an instance of either with other strengths.
        image_mean: Per channel, on the rescaled image; ImageNet's by default. Take these three from the image
            processor of the model.
        image_std: As `image_mean`.
        rescale_factor: Multiplies the 0-255 values before normalisation; 1 for bands as they are stored.
        ignore_index: Label of the padding.
        max_class_share: Move the crop elsewhere, up to ten times, while one class covers more than this share of its
            labelled pixels (mmsegmentation's `cat_max_ratio`, 0.75 in its recipes). 1 (default): never.
        reverse_channels: Give BGR, to which mean and std belong then; RGB by default.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 2.0),
        scale_base: Literal["image"] | int = "image",
        flip_probability: float = 0.5,
        photometric: Literal["none", "blur", "jitter"] | RandomBlur | PhotoMetricDistortion = "none",
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        rescale_factor: float = 1 / 255,
        ignore_index: int = IGNORE_INDEX,
        max_class_share: float = 1.0,
        reverse_channels: bool = False,
    ) -> None:
        _check_geometry(crop_size, scale_range, scale_base)
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability must be in 0..1, got {flip_probability}.")
        if not 0 < max_class_share <= 1:
            raise ValueError(f"max_class_share must be in 0..1, got {max_class_share}.")
        if isinstance(photometric, str) and photometric != "none" and photometric not in PHOTOMETRIC:
            raise ValueError(f"photometric must be none, {', '.join(PHOTOMETRIC)}, got {photometric!r}.")
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.scale_range = scale_range
        self.scale_base = scale_base
        self.flip_probability = flip_probability
        self.photometric = PHOTOMETRIC.get(photometric) if isinstance(photometric, str) else photometric
        self.ignore_index = ignore_index
        self.max_class_share = max_class_share
        self.reverse_channels = reverse_channels
        mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (image_mean, image_std))
        self._factor = (rescale_factor / std).float()
        self._offset = (-mean / std).float()

    def __call__(
        self,
        image: Image.Image | MultiBandImage,
        annotation: Image.Image | np.ndarray,
        rng: np.random.Generator,
    ) -> dict[str, Tensor]:
        """Draw one training sample.

        Args:
            image: RGB, or a `MultiBandImage` of as many bands as there are means.
            annotation: Class ids of the same size, PIL "L" or (hh, ww) uint8; "I;16" or uint16 where there are more
                than 255 classes.
            rng: The only source of randomness.

        Returns:
            `pixel_values`, (c, h, w) float32, and `labels`, (h, w) int64.

        Raises:
            ValueError: If the sizes differ, an array is of another type, or the photometric change is not for such
                images.
        """
        if isinstance(annotation, np.ndarray):
            if annotation.dtype not in (np.uint8, np.uint16):
                raise ValueError(f"annotation must be uint8 or uint16 class ids, got {annotation.dtype}.")
            annotation = Image.fromarray(annotation)
        if image.size != annotation.size:
            raise ValueError(f"image is {image.size} and annotation {annotation.size} pixels (width, height).")
        window, labels = self._draw_crop(annotation, rng)
        crop = window.cut(image, Image.Resampling.BILINEAR)
        if rng.random() < self.flip_probability:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            labels = labels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.photometric is not None:
            if isinstance(image, MultiBandImage):
                raise ValueError(no_photometric_change(type(self.photometric).__name__))
            crop = self.photometric(crop, rng)
        return {"pixel_values": self._normalise_and_pad(crop), "labels": self._pad_labels(labels)}

    def draw_window(self, image_size: tuple[int, int], rng: np.random.Generator) -> CropWindow:
        """Draw the scale and the place of a crop for an image of (height, width) pixels."""
        low, high = self.scale_range
        if self.scale_base == "image":
            scale = rng.uniform(low, high)
        else:
            short_side = rng.integers(round(low * self.scale_base), round(high * self.scale_base), endpoint=True)
            scale = short_side / min(image_size)
        scaled = tuple(max(1, round(side * scale)) for side in image_size)
        size = tuple(min(pair) for pair in zip(scaled, self.crop_size, strict=True))
        return CropWindow(scaled, _draw_corner(scaled, size, rng), size)

    def _draw_crop(self, annotation: Image.Image, rng: np.random.Generator) -> tuple[CropWindow, Image.Image]:
        """A crop window and the labels in it, none of whose classes takes more than its share."""
        window = self.draw_window((annotation.height, annotation.width), rng)
        labels = window.cut(annotation, Image.Resampling.NEAREST)
        for _ in range(MAX_REDRAWS):
            if not self._one_class_prevails(labels):
                break
            window = replace(window, corner=_draw_corner(window.scaled_size, window.size, rng))
            labels = window.cut(annotation, Image.Resampling.NEAREST)
        return window, labels

    def _one_class_prevails(self, labels: Image.Image) -> bool:
        """Whether a class covers more than its share of the labelled pixels."""
        if self.max_class_share == 1:
            return False
        if labels.mode == "L":
            counts = labels.histogram()
        else:
            counts = np.bincount(np.asarray(labels).ravel(), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        return max(counts) > self.max_class_share * sum(counts)

    def _normalise_and_pad(self, crop: Image.Image | MultiBandImage) -> Tensor:
        """(c, h, w) float32 of the crop's full size; the mean colour is 0 after normalisation."""
        pixel_values = torch.zeros(len(self._factor), *self.crop_size)
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)  # (c, height, width)
        if self.reverse_channels:
            pixels = pixels.flip(0)
        content = pixel_values[:, : crop.height, : crop.width]
        torch.addcmul(self._offset, pixels, self._factor, out=content)
        return pixel_values

    def _pad_labels(self, crop: Image.Image) -> Tensor:
        """(h, w) int64 of the crop's full size."""
        labels = torch.full(self.crop_size, self.ignore_index)
        labels[: crop.height, : crop.width] = torch.from_numpy(np.array(crop))
        return labels


def no_photometric_change(name: str) -> str:
    """Message for a photometric change of images that are read as they are stored."""
    return (
        f"photometric {name!r} changes RGB pictures of 8 bits, and these images are read in bands, as they are stored "
        "(num_channels). Train with photometric 'none'."
    )


def _draw_corner(scaled_size: tuple[int, int], crop_size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """A uniformly random (top, left) at which the crop lies inside the scaled image."""
    top, left = (int(rng.integers(0, s - c, endpoint=True)) for s, c in zip(scaled_size, crop_size, strict=True))
    return top, left


def _check_geometry(crop_size: tuple[int, int], scale_range: tuple[float, float], scale_base: str | int) -> None:
    """Raise for sizes and scales that cannot be drawn."""
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise ValueError(f"crop_size must be a positive (height, width), got {crop_size}.")
    if not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(f"scale_range must be positive and ascending, got {scale_range}.")
    if scale_base != "image" and (not isinstance(scale_base, int) or scale_base < 1):
        raise ValueError(f'scale_base must be "image" or a short side in pixels, got {scale_base!r}.')
