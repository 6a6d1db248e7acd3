"""Samples of images and masks that are kept decoded on disk are those of the files, bit for bit."""

import io
import os
import pickle
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
import trees
from PIL import Image
from torch.utils.data import DataLoader

from hf_segkd.data import AugmentedDataset, TrainTransform, load_segmentation_dataset, load_unlabelled_images
from hf_segkd.data import data_cache as data_cache_module
from hf_segkd.data.image_files import UnreadableImageError
from hf_segkd.data.photometric import PhotoMetricDistortion, RandomBlur
from hf_segkd.data.transforms import CropWindow

ORIENTATION_TAG = 0x0112
CLASSES = ["road", "car", "sky"]
COLOURS = [[128, 64, 128], [0, 0, 142], [70, 130, 180]]
SIZE = (50, 70)


def pictures(root, kinds=("jpg", "png", "jpg"), size=SIZE):
    for seed, kind in enumerate(kinds):
        trees.write_image(root / "train" / "images" / f"{seed}.{kind}", size, seed)
        trees.write_mask(root / "train" / "labels" / f"{seed}.png", trees.mask_of([0, 1, 2, 255], size))
    return root


def folder(root, **options):
    return load_segmentation_dataset("folder", root, "train", **{"classes": CLASSES, **options})


def samples(images, cache, epochs=3, unlabelled=None, crop_size=(40, 60), **options):
    """All samples of some epochs; with a cache once while it is filled, and once from it."""
    augmented = AugmentedDataset(images, TrainTransform(crop_size, **options), 0, unlabelled, data_cache=cache)
    found = []
    for epoch in list(range(epochs)) * (1 if cache is None else 2):
        augmented.set_epoch(epoch)
        found += [augmented[index] for index in range(len(augmented))]
    return found


def same(first, second):
    return len(first) == len(second) and all(
        a["image_ids"] == b["image_ids"]
        and torch.equal(a["pixel_values"], b["pixel_values"])
        and torch.equal(a["labels"], b["labels"])
        for a, b in zip(first, second, strict=True)
    )


def files(cache):
    return sorted(cache.glob("*/*.raw"))


def assert_kept(images, cache, count, **options):
    plain = samples(images, None, **options)
    assert same(samples(images, cache, **options), plain * 2)
    assert len(files(cache)) == count
    assert not list(cache.glob("*/*.part"))


def write_twelve_bits(root):
    for path in (root / "train" / "labels").iterdir():
        numbers = np.random.default_rng(0).integers(0, 300, SIZE).astype(np.uint16)
        Image.fromarray(numbers).save(path)


def write_palettes(root):
    for path in (root / "train" / "labels").iterdir():
        trees.write_mask(path, trees.mask_of([0, 7, 9, 255], SIZE), palette=True)


def write_colours(root):
    for path in (root / "train" / "labels").iterdir():
        Image.fromarray(np.array(COLOURS, dtype=np.uint8)[trees.mask_of([0, 1, 2], SIZE)]).save(path)


def turn_photos(root):
    exif = Image.Exif()
    for turn, path in zip((6, 3), sorted((root / "train" / "images").glob("*.jpg")), strict=True):
        exif[ORIENTATION_TAG] = turn
        Image.open(path).save(path, exif=exif)
        upright = SIZE if turn < 5 else SIZE[::-1]
        trees.write_mask(root / "train" / "labels" / f"{path.stem}.png", trees.mask_of([0, 1, 2], upright))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (None, {}),
        (write_palettes, {"ids": {0: 0, 7: 1, 9: 2, 255: None}}),
        (write_colours, {"palette": COLOURS}),
        (write_twelve_bits, {"classes": [str(number) for number in range(300)]}),
        (turn_photos, {}),
    ],
    ids=["numbers", "palette with ids", "colours", "16 bits", "turned photos"],
)
def test_samples_are_the_same_with_and_without_the_cache(change, options, tmp_path):
    if change is not None:
        change(pictures(tmp_path))
    images = folder(pictures(tmp_path) if change is None else tmp_path, **options)
    ignore_index = 65535 if "classes" in options else 255
    assert_kept(images, tmp_path / "cache", 6, ignore_index=ignore_index)


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": RandomBlur(probability=1.0)},
        {"photometric": PhotoMetricDistortion()},
        {"flip_probability": 1.0, "reverse_channels": True},
        {"max_class_share": 0.3, "scale_base": 40},
        {"scale_range": (1.0, 1.0), "crop_size": (64, 80)},
    ],
    ids=["blur", "jitter", "flip", "redrawn", "padded"],
)
def test_every_augmentation_is_the_same_with_and_without_the_cache(options, tmp_path):
    assert_kept(folder(pictures(tmp_path)), tmp_path / "cache", 6, epochs=4, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_bands_are_the_same_with_and_without_the_cache(dtype, tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile (pip install hf-segkd[tiff])")
    for seed in range(3):
        path = trees.write_image(tmp_path / "train" / "images" / f"{seed}.tif", SIZE, seed)
        values = np.random.default_rng(seed).integers(0, 200, (*SIZE, 4)).astype(dtype)
        tifffile.imwrite(path, values, photometric="minisblack")
        trees.write_mask(tmp_path / "train" / "labels" / f"{seed}.png", trees.mask_of([0, 1, 2], SIZE))
    options = {"image_mean": [100.0] * 4, "image_std": [50.0] * 4, "rescale_factor": 1.0}
    images = folder(tmp_path, num_channels=4)
    assert_kept(images, tmp_path / "cache", 6, **options)
    assert_room_is_exact(images, tmp_path / "another", **options)


def test_unlabelled_images_rows_with_their_own_bytes_and_images_without_masks_are_kept_too(tmp_path):
    photos = load_unlabelled_images(pictures(tmp_path / "photos") / "train" / "images")
    demo = load_segmentation_dataset("demo", num_images=3, image_size=(48, 64))
    assert_kept(demo, tmp_path / "cache", 9, unlabelled=photos)
    assert_kept(photos, tmp_path / "cache", 9)  # the same files
    images = pictures(tmp_path / "scenes")
    (images / "train" / "labels" / "1.png").unlink()
    assert_kept(folder(images, missing_masks="road"), tmp_path / "another", 5)


def test_a_crop_reads_the_mapped_file_without_copying_it(tmp_path, monkeypatch):
    images, cache = folder(pictures(tmp_path)), tmp_path / "cache"
    samples(images, cache)
    seen = []
    cut = CropWindow.cut
    monkeypatch.setattr(CropWindow, "cut", lambda window, image, how: seen.append(image) or cut(window, image, how))
    monkeypatch.setattr(data_cache_module, "_values", None)  # nothing is decoded
    samples(images, cache)
    assert {image.mode for image in seen} == {"RGB", "L"}
    assert all(image.readonly for image in seen)  # Pillow copies them before it writes


def test_workers_and_a_second_data_set_share_the_folder(tmp_path):
    images, cache = folder(pictures(tmp_path)), tmp_path / "cache"
    plain = samples(images, None, epochs=1)
    augmented = AugmentedDataset(images, TrainTransform((40, 60)), 0, data_cache=cache)
    loaded = list(DataLoader(augmented, batch_size=None, num_workers=2))
    assert same(loaded, plain)
    written = {file: file.stat().st_mtime_ns for file in files(cache)}
    again = pickle.loads(pickle.dumps(AugmentedDataset(images, TrainTransform((40, 60)), data_cache=cache)))
    assert same([again[index] for index in range(3)], plain)
    assert {file: file.stat().st_mtime_ns for file in files(cache)} == written


def test_another_file_other_labels_and_another_reading_have_files_of_their_own(tmp_path):
    root, cache = pictures(tmp_path), tmp_path / "cache"
    samples(folder(root), cache)
    samples(folder(root, ids={0: 2, 1: 1, 2: 0}), cache)
    assert len(files(cache)) == 9  # three masks more
    path = root / "train" / "images" / "1.png"
    trees.write_image(path, SIZE, seed=9)
    os.utime(path, ns=(0, 10**18))
    assert same(samples(folder(root), cache), samples(folder(root), None) * 2)
    assert len(files(cache)) == 10
    samples(folder(root, num_channels=3), cache)
    assert len(files(cache)) == 13


def test_what_was_cut_off_is_written_anew_and_old_parts_are_cleared_away(tmp_path):
    images, cache = folder(pictures(tmp_path)), tmp_path / "cache"
    plain = samples(images, None)
    samples(images, cache)
    for file, length in zip(files(cache), (0, 5, 31, 32, 1000, 2000), strict=True):
        file.write_bytes(file.read_bytes()[:length])
    old, new = (files(cache)[0].with_name(f"{name}.part") for name in ("old", "new"))
    for part in (old, new):
        part.write_bytes(b"cut")
    os.utime(old, (0, 0))
    assert same(samples(images, cache), plain * 2)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_file_is_whole_or_not_there_when_writing_it_fails(tmp_path, monkeypatch):
    images, cache = folder(pictures(tmp_path)), tmp_path / "cache"
    monkeypatch.setattr(np, "ascontiguousarray", full_disk)  # after the header was written
    with pytest.raises(OSError, match="no space"):
        samples(images, cache)
    assert not list(cache.glob("*/*"))


def full_disk(values):
    raise OSError("no space left on device")


def test_bad_files_raise_what_they_raise_without_the_cache(tmp_path):
    root, cache = pictures(tmp_path), tmp_path / "cache"
    images = folder(root)
    (root / "train" / "images" / "0.jpg").write_bytes(b"no picture")
    (root / "train" / "images" / "1.png").unlink()
    trees.write_mask(root / "train" / "labels" / "2.png", trees.mask_of([3], SIZE))
    for index, kind in ((0, UnreadableImageError), (1, UnreadableImageError), (2, ValueError)):
        said = []
        for folder_of_cache in (None, cache):
            augmented = AugmentedDataset(images, TrainTransform((40, 60)), data_cache=folder_of_cache)
            with pytest.raises(kind) as error:
                augmented[index]
            said.append(str(error.value))
        assert said[0] == said[1]
    trees.write_mask(root / "train" / "labels" / "2.png", trees.mask_of([1], SIZE))
    skipping = AugmentedDataset(images, TrainTransform((40, 60)), bad_images="skip", data_cache=cache)
    assert [skipping[index]["image_ids"] for index in range(3)] == ["2", "2", "2"]
    skipping.announce_cache()
    assert len(files(cache)) == 2
    trees.write_mask(root / "train" / "labels" / "2.png", trees.mask_of([0], (20, 20)))
    with pytest.raises(ValueError, match=r"2.jpg is 70 x 50 pixels but its mask .*2.png is 20 x 20"):
        AugmentedDataset(images, TrainTransform((40, 60)), data_cache=cache)[2]


def assert_room_is_exact(images, cache, unlabelled=None, **options):
    """The room that is asked for is that of all files but for their headers of 32 bytes."""
    augmented = AugmentedDataset(images, TrainTransform((40, 60), **options), 0, unlabelled, data_cache=cache)
    for index in range(len(augmented)):
        with pytest.raises(ValueError, match=r"take (\S+) GiB") as error:
            augmented.announce_cache(0.0)
        asked = float(re.search(r"take (\S+) GiB", str(error.value))[1])
        kept = re.search(r"; (\S+) GiB are there", str(error.value))[1]
        assert float(kept) == pytest.approx(sum(file.stat().st_size for file in files(cache)) / 2**30, rel=1e-2)
        augmented[index]
    full = sum(file.stat().st_size for file in files(cache))
    assert asked == pytest.approx(full / 2**30, rel=1e-2)


def test_the_room_it_takes_is_told_from_the_headers_before_anything_is_decoded(tmp_path, caplog, monkeypatch):
    photos = load_unlabelled_images(pictures(tmp_path / "photos") / "train" / "images")
    assert_room_is_exact(folder(pictures(tmp_path)), tmp_path / "a", unlabelled=photos)
    assert_room_is_exact(load_segmentation_dataset("demo", num_images=3, image_size=(48, 64)), tmp_path / "b")
    turn_photos(tmp_path)
    assert_room_is_exact(folder(tmp_path), tmp_path / "c")
    write_twelve_bits(pictures(tmp_path / "wide"))
    wide = folder(tmp_path / "wide", classes=[str(number) for number in range(300)])
    assert_room_is_exact(wide, tmp_path / "d", ignore_index=65535)
    augmented = AugmentedDataset(wide, TrainTransform(SIZE), data_cache=tmp_path / "e")
    augmented.announce_cache()
    assert f"{6 * 3 * 3500 / 2**30:.3g} GiB in the data cache {tmp_path / 'e'}; 0 GiB are there" in caplog.text
    assert not files(tmp_path / "e")
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(ValueError, match=r"The disk has 9.31e-10 GiB left. Leave data_cache out"):
        augmented.announce_cache()


def test_images_of_another_origin_are_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    own = datasets.Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}], "image_id": ["a"]})
    with pytest.raises(ValueError, match="not made by load_segmentation_dataset"):
        AugmentedDataset(own, TrainTransform((40, 60)), data_cache=tmp_path)
