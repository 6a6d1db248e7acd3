"""Changes of colour and sharpness for training; they do not change the labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True)
class RandomBlur:
    """Gaussian blur of random strength.

    Defaults: the code of AttnFD (arXiv 2403.05451), which blurs after cropping.

    Args:
        probability: How often, 0 to 1.
        max_radius: Standard deviation in pixels is uniform in [0, max_radius).
    """

    probability: float = 0.5
    max_radius: float = 1.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Blur or not; `image` is RGB."""
        if rng.random() >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, self.max_radius)))


@dataclass(frozen=True)
class PhotoMetricDistortion:
    """Random brightness, contrast, saturation and hue, each with probability 1/2.

    Defaults and order: `PhotoMetricDistortion` of mmsegmentation, which the FAKD paper (arXiv 2208.14143) trains
    with. Contrast comes before or after saturation and hue, at random.

    Args:
        brightness: Largest shift of all channels, of 255.
        contrast: Range of the factor on all channels.
        saturation: Range of the factor on the saturation.
        hue: Largest turn of the hue, in degrees (18 steps of 2 degrees there).
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 36.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Distort; `image` is RGB."""
        do_brightness, do_contrast, do_saturation, do_hue, contrast_first = rng.random(5) < 0.5
        shift = rng.uniform(-self.brightness, self.brightness) if do_brightness else 0.0
        contrast = rng.uniform(*self.contrast) if do_contrast else 1.0
        saturation = rng.uniform(*self.saturation) if do_saturation else 1.0
        turn = rng.uniform(-self.hue, self.hue) if do_hue else 0.0

        image = _scale_and_shift(image, 1.0, shift)
        if contrast_first:
            image = _scale_and_shift(image, contrast, 0.0)
        if do_saturation or do_hue:
            turned = (np.arange(256) + turn / 360 * 256).round().astype(int) % 256
            tables = [*turned.tolist(), *_table(saturation, 0.0), *range(256)]
            image = image.convert("HSV").point(tables).convert("RGB")
        if not contrast_first:
            image = _scale_and_shift(image, contrast, 0.0)
        return image


def _scale_and_shift(image: Image.Image, scale: float, shift: float) -> Image.Image:
    """`scale * value + shift` for every channel, clipped to 0..255."""
    if scale == 1.0 and shift == 0.0:
        return image
    return image.point(_table(scale, shift) * len(image.getbands()))


def _table(scale: float, shift: float) -> list[int]:
    """`scale * value + shift`, clipped, of each value from 0 to 255."""
    return (np.arange(256) * scale + shift).clip(0, 255).round().astype(int).tolist()
