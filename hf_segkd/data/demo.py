"""`load_demo`: a generated data set without files: textured objects that occlude each other on a textured background.

A class is a pair of shape and texture. Each shape and each texture occurs in several classes, colours of classes
overlap, and the background has textures of its own, so that neither colour nor a small neighbourhood decides: a
network with a larger view and more channels does better. As in Pascal VOC, outlines are labelled 255.
"""

from __future__ import annotations

import colorsys
import io
import os

import datasets
import numpy as np
from PIL import Image

from .files import canonical_split, dataset_from_rows
from .labels import IGNORE_INDEX, LabelInfo, LabelScheme, voc_palette

# The position enters the generator's key, the number is the default of `num_images`.
SPLITS = {"train": 512, "val": 128, "test": 128}

# Inside or outside, from object coordinates u (length), v (width) in -1..1.
SHAPES = {
    "ellipse": lambda u, v: u * u + v * v < 1,
    "box": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.85,
    "triangle": lambda u, v: (u > -0.75) & (np.abs(v) < (0.95 - u) / 1.9),
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.33) & (np.maximum(np.abs(u), np.abs(v)) < 0.95),
    "ring": lambda u, v: np.abs(u * u + v * v - 0.65) < 0.35,
    "crescent": lambda u, v: (u * u + v * v < 1) & ((u - 0.5) ** 2 + v * v > 0.45),
}
# Share of the lighter of two colours, 0..1, from object coordinates.
TEXTURES = {
    "shaded": lambda u, v: 0.5 + 0.5 * u,
    "striped": lambda u, v: np.sin(9 * u) > 0,
    "chequered": lambda u, v: np.sin(8 * u) * np.sin(8 * v) > 0,
    "dotted": lambda u, v: np.cos(10 * u) + np.cos(10 * v) > 0.9,
    "target": lambda u, v: np.sin(12 * np.sqrt(u * u + v * v)) > 0,
    "wavy": lambda u, v: np.sin(9 * u + 3 * np.sin(5 * v)) > 0,
}
MAX_NUM_CLASSES = 1 + len(SHAPES) * len(TEXTURES)


def load_demo(
    data_dir: str | os.PathLike | None,
    split: str,
    *,
    num_images: int | None = None,
    image_size: tuple[int, int] = (96, 128),
    num_classes: int = 6,
    seed: int = 0,
) -> datasets.Dataset:
    """Generate scenes; the one of (seed, split, index) is always the same.

    Args:
        data_dir: Must be None: there are no files.
        split: "train", "val" (or "validation") or "test".
        num_images: Number of scenes; 512 for training, 128 otherwise.
        image_size: Height and width in pixels, at least 16.
        num_classes: Background included, 2 to 37.
        seed: Any integer from 0.

    Raises:
        ValueError: If an argument is out of its range or the split does not exist.
    """
    if data_dir is not None:
        raise ValueError(f"The demo set is generated and has no files; data_dir must be None, got {data_dir}.")
    split = canonical_split(split, SPLITS, "demo")
    num_images = SPLITS[split] if num_images is None else num_images
    if num_images < 1 or min(image_size) < 16 or seed < 0:
        raise ValueError(
            f"demo: need num_images >= 1, image_size >= (16, 16) and seed >= 0, got {num_images}, {image_size}, {seed}."
        )
    scheme = demo_scheme(num_classes)
    rows: dict[str, list] = {"image": [], "annotation": [], "image_id": []}
    for index in range(num_images):
        rng = np.random.default_rng((seed, list(SPLITS).index(split), index))
        image, labels = render_scene(rng, image_size, num_classes)
        rows["image"].append({"bytes": _encode_png(image), "path": None})
        rows["annotation"].append({"bytes": _encode_png(labels), "path": None})
        rows["image_id"].append(f"{split}_{index:05d}")
    return dataset_from_rows(rows, scheme, split)


def demo_scheme(num_classes: int) -> LabelScheme:
    """Labels of the demo set, background first.

    Raises:
        ValueError: If there are fewer than 2 classes, or more than a mask can hold.
    """
    if not 2 <= num_classes <= MAX_NUM_CLASSES:
        raise ValueError(f"demo: num_classes must be 2..{MAX_NUM_CLASSES}, got {num_classes}.")
    names = ["background", *(" ".join(reversed(class_appearance(c))) for c in range(1, num_classes))]
    return LabelScheme(
        info=LabelInfo.from_names("demo", names, voc_palette(num_classes)),
        raw_to_id={index: index for index in [*range(num_classes), IGNORE_INDEX]},
        out_of_range_hint="The generator is at fault.",
    )


def class_appearance(class_id: int) -> tuple[str, str]:
    """Shape and texture of an object class.

    Consecutive classes share a shape and a texture in turn: (a, 1), (a, 2), (b, 2), (b, 3), ...
    """
    step = class_id - 1
    shape = step // 2 % len(SHAPES)
    lap = step // (2 * len(SHAPES))  # every lap starts two textures on, so that no pair comes twice
    texture = ((step + 1) // 2 + 2 * lap) % len(TEXTURES)
    return list(SHAPES)[shape], list(TEXTURES)[texture]


def render_scene(
    rng: np.random.Generator, image_size: tuple[int, int], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """One scene.

    Args:
        rng: The only source of randomness.
        image_size: (height, width) in pixels.
        num_classes: Background and objects.

    Returns:
        Image, (h, w, 3) uint8, and labels, (h, w) uint8 with 0 for background and 255 on outlines.
    """
    height, width = image_size
    image = _background(rng, height, width)
    labels = np.zeros((height, width), dtype=np.uint8)
    for _ in range(rng.integers(3, 8)):
        _paint_object(rng, image, labels, int(rng.integers(1, num_classes)), num_classes)
    outline = np.zeros_like(labels, dtype=bool)
    outline[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    outline[1:] |= labels[1:] != labels[:-1]
    labels[outline] = IGNORE_INDEX

    image *= _light(rng, height, width)[..., None]
    image += rng.normal(0, rng.uniform(4, 16), size=(height, width, 1)).astype(np.float32)  # grain
    image += rng.integers(-8, 9, size=image.shape, dtype=np.int8)  # colour noise
    return image.clip(0, 255).astype(np.uint8), labels


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Clouds between two colours with faint texture of a random kind over all, (h, w, 3) float32."""
    dark, light = _two_colours(rng, hue=rng.random())
    clouds = Image.fromarray(rng.integers(0, 256, size=(5, 6), dtype=np.uint8)).resize((width, height))
    share = np.asarray(clouds, dtype=np.float32) / 255
    texture = list(TEXTURES.values())[rng.integers(len(TEXTURES))]
    angle, size = rng.uniform(0, np.pi), rng.uniform(0.1, 0.3) * min(height, width)
    u, v = _object_coordinates(np.ogrid[:height, :width], (height / 2, width / 2), angle, (size, size))
    share = share + rng.uniform(0.1, 0.5) * (texture(u, v).astype(np.float32) - 0.5)
    return dark + (light - dark) * share[..., None].astype(np.float32)


def _paint_object(
    rng: np.random.Generator, image: np.ndarray, labels: np.ndarray, class_id: int, num_classes: int
) -> None:
    """Paint one object over what is there, in place."""
    height, width = labels.shape
    shape, texture = class_appearance(class_id)
    centre = (rng.uniform(0, height), rng.uniform(0, width))
    length = min(height, width) * 0.09 * 4 ** rng.random()  # half the long axis: 9 to 36 % of the short side
    axes = (length, length * rng.uniform(0.6, 1.0))
    angle = rng.uniform(0, 2 * np.pi)
    # Colours of classes lie around the colour circle but spread over a third of it, so they overlap.
    dark, light = _two_colours(rng, hue=class_id / num_classes + rng.normal(0, 0.15))

    reach = 1.42 * length
    top, bottom = (int(np.clip(centre[0] + side, 0, height)) for side in (-reach, reach + 1))
    left, right = (int(np.clip(centre[1] + side, 0, width)) for side in (-reach, reach + 1))
    u, v = _object_coordinates(np.ogrid[top:bottom, left:right], centre, angle, axes)
    inside = SHAPES[shape](u, v)
    share = TEXTURES[texture](u, v).astype(np.float32)[..., None]
    np.copyto(image[top:bottom, left:right], dark + (light - dark) * share, where=inside[..., None])
    labels[top:bottom, left:right][inside] = class_id


def _object_coordinates(
    grid: tuple[np.ndarray, np.ndarray], centre: tuple[float, float], angle: float, axes: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u, v of an object that is moved to `centre`, turned and stretched, both (h, w) float32."""
    y = (grid[0] - centre[0]).astype(np.float32)
    x = (grid[1] - centre[1]).astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return (x * cos + y * sin) / np.float32(axes[0]), (y * cos - x * sin) / np.float32(axes[1])


def _two_colours(rng: np.random.Generator, hue: float) -> tuple[np.ndarray, np.ndarray]:
    """A dark and a light colour of similar hue, float32 RGB in 0..255."""
    values = rng.uniform((0.25, 0.6), (0.55, 0.95))
    return tuple(
        np.array(colorsys.hsv_to_rgb((hue + rng.normal(0, 0.04)) % 1, rng.uniform(0.2, 0.8), value), np.float32)
        * np.float32(255)
        for value in values
    )


def _light(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Illumination that falls off across the scene, (h, w) float32 around 1."""
    angle = rng.uniform(0, 2 * np.pi)
    u, _ = _object_coordinates(np.ogrid[:height, :width], (height / 2, width / 2), angle, (width / 2, width / 2))
    return np.float32(rng.uniform(0.65, 1.2)) * (1 + np.float32(rng.uniform(0, 0.4)) * u)


def _encode_png(pixels: np.ndarray) -> bytes:
    """Lossless bytes of an (h, w) or (h, w, 3) uint8 picture."""
    buffer = io.BytesIO()
    # 0: noise hardly compresses, and trying takes twice as long.
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()
