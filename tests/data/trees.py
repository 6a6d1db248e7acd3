"""Small data sets on disk, in the official layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hf_segkd.data.labels import voc_palette

SIZE = (12, 16)  # height, width


def write_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask_of(values: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask in which each of the values occurs."""
    return np.resize(np.array(values, dtype=np.uint8), size)


def write_mask(path: Path, mask: np.ndarray, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    if palette:
        picture.putpalette([channel for colour in voc_palette(256) for channel in colour])
    picture.save(path)
    return path


def voc_tree(root: Path, splits: dict[str, list[str]], values: list[int], masks: str = "SegmentationClass") -> Path:
    """VOCdevkit/VOC2012 with palette masks, as released."""
    voc = root / "VOCdevkit" / "VOC2012"
    for split, names in splits.items():
        for seed, name in enumerate(names):
            write_image(voc / "JPEGImages" / f"{name}.jpg", seed=seed)
            write_mask(voc / masks / f"{name}.png", mask_of(values), palette=masks == "SegmentationClass")
        write_list(voc / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return root


def write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")


def context_tree(root: Path, values: list[int]) -> Path:
    voc = root / "VOCdevkit" / "VOC2010"
    for split, name in (("train", "2008_000002"), ("val", "2008_000003")):
        write_image(voc / "JPEGImages" / f"{name}.jpg")
        write_mask(voc / "SegmentationClassContext" / f"{name}.png", mask_of(values))
        write_list(voc / "ImageSets" / "SegmentationContext" / f"{split}.txt", [name])
    return root


def cityscapes_tree(root: Path, values: list[int], kind: str = "labelIds") -> Path:
    for split, city in (("train", "aachen"), ("train", "zurich"), ("val", "munster")):
        stem = f"{city}_000000_000019"
        write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        write_mask(root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png", mask_of(values))
        write_mask(root / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png", mask_of([200]))
    return root


def ade_tree(root: Path, values: list[int]) -> Path:
    ade = root / "ADEChallengeData2016"
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        write_image(ade / "images" / split / f"{name}.jpg")
        write_mask(ade / "annotations" / split / f"{name}.png", mask_of(values))
    return root


def folder_tree(root: Path, masks: str = "labels", split_inside: bool = False) -> Path:
    for split, num_images in (("train", 3), ("val", 2)):
        for index in range(num_images):
            for kind, suffix in (("images", "jpg"), (masks, "png")):
                folder = root / kind / split if split_inside else root / split / kind
                path = folder / f"scene{index}.{suffix}"
                if kind == "images":
                    write_image(path, seed=index)
                else:
                    write_mask(path, mask_of([0, 1, 2, 255]))
    return root
