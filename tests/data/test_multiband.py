import io
import logging
import random
import struct
import zlib

import datasets
import numpy as np
import pytest
import trees
from PIL import Image

from hf_segkd.data import (
    AugmentedDataset,
    MultiBandImage,
    TrainTransform,
    check_dataset,
    load_segmentation_dataset,
    load_unlabelled_images,
    read_bands,
    stored_channels,
    without_labels,
)
from hf_segkd.data import image_files as image_files_module
from hf_segkd.data.image_files import UnreadableImageError, read_rgb
from hf_segkd.data.statistics import count_statistics, processor_values

tifffile = pytest.importorskip("tifffile", reason="needs tifffile (pip install hf-segkd[tiff])")

HEIGHT, WIDTH = 12, 16


def numbers(bands, dtype=np.uint16, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (HEIGHT, WIDTH, bands)).astype(dtype)


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **{"photometric": "minisblack", **options})
    return io.BytesIO(file.getvalue())


def picture(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return io.BytesIO(file.getvalue())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("bands", [1, 2, 4, 13])
@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
def test_a_tiff_file_gives_every_band_as_it_is_stored(dtype, bands, compression):
    if compression == "lzw":
        pytest.importorskip("imagecodecs", reason="needs imagecodecs (pip install hf-segkd[tiff])")
    values = numbers(bands, dtype)
    interleaved = tiff(values, planarconfig="contig" if bands > 1 else None, compression=compression)
    separate = tiff(np.moveaxis(values, 2, 0), planarconfig="separate" if bands > 1 else None, compression=compression)
    pages = tiff(np.moveaxis(values, 2, 0), compression=compression)
    rows_as_pages = tiff(values, compression=compression)  # what tifffile makes of (h, w, n) unless told otherwise
    for file in (interleaved, separate, pages, rows_as_pages):
        read = np.asarray(read_bands(file, "scene", bands))
        assert read.dtype == dtype
        assert (read == values).all()


@pytest.mark.parametrize(
    ("mode", "bands", "kind"), [("L", 1, "PNG"), ("I;16", 1, "PNG"), ("RGBA", 4, "PNG"), ("RGB", 3, "BMP")]
)
def test_other_formats_give_the_channels_that_pil_knows(mode, bands, kind):
    values = numbers(bands, np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(values[..., 0] if bands == 1 else values)
    assert image.mode == mode
    assert (np.asarray(read_bands(picture(image, kind), "scene", bands)) == values).all()


def png_of_16_bits():
    """PIL writes none in colours: 1 x 1, RGB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = zlib.compress(b"\0" + struct.pack(">3H", 300, 20, 7))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", row) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("file", "num_channels", "error", "message"),
    [
        (
            lambda: tiff(numbers(4), planarconfig="contig"),
            5,
            ValueError,
            "has 4 bands, and images are read with num_channels=5",
        ),
        (lambda: picture(Image.new("L", (4, 4)), "PNG"), 3, ValueError, "has 1 bands, and images are read with num_ch"),
        (
            lambda: picture(Image.new("P", (4, 4)), "PNG"),
            1,
            ValueError,
            "has PIL's mode P, whose numbers are no measurements",
        ),
        (
            lambda: picture(Image.new("P", (4, 4)), "TIFF"),
            1,
            ValueError,
            r"its numbers \(places in a palette\) are no",
        ),
        (
            lambda: tiff(numbers(2).astype(complex), planarconfig="contig"),
            2,
            ValueError,
            "complex128.* no measurements",
        ),
        (lambda: tiff(np.where(numbers(2) < 9, np.nan, 1)), 2, ValueError, r"\d+ of 384 numbers are not finite"),
        (lambda: tiff(numbers(1), extratags=[(274, "H", 1, 6, True)]), 1, ValueError, "is stored turned .* is 6"),
        (png_of_16_bits, 3, ValueError, "is a PNG of 3 channels of 16 bits, of which PIL reads the upper 8"),
        (lambda: io.BytesIO(tiff(numbers(3)).getvalue()[:400]), 3, UnreadableImageError, "cannot be decoded"),
        (lambda: io.BytesIO(b"II*\0garbage"), 3, UnreadableImageError, "cannot be decoded"),
        (lambda: io.BytesIO(b"garbage"), 3, UnreadableImageError, "cannot be decoded"),
    ],
)
def test_what_has_no_such_bands_is_one_error_that_names_the_file(file, num_channels, error, message):
    with pytest.raises(error, match=f"scene: .*{message}"):
        read_bands(file(), "scene", num_channels)


@pytest.mark.filterwarnings("ignore")  # PIL tells much of damaged TIFFs
def test_whatever_is_wrong_with_a_tiff_file_it_is_one_error_that_names_it():
    whole, draw, errors = tiff(numbers(5), planarconfig="contig").getvalue(), random.Random(1), []
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(420)] = draw.randrange(256)
        try:
            read_bands(io.BytesIO(content), "scene", 5, max_pixels=100_000)
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 50
    assert all(error.startswith("scene: ") for error in errors)


def test_a_missing_file_and_one_that_is_too_large_are_unreadable(tmp_path):
    with pytest.raises(UnreadableImageError, match="does not exist"):
        read_bands(str(tmp_path / "no.tif"), "no.tif", 3)
    with pytest.raises(UnreadableImageError, match="16 x 12 pixels, more than the limit of 100:"):
        read_bands(tiff(numbers(3)), "scene", 3, max_pixels=100)


def test_pages_of_several_sizes_are_not_bands_but_overviews_may_be_there():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(numbers(4), photometric="minisblack", planarconfig="contig", subifds=0)
        writer.write(numbers(4)[::2, ::2].copy(), photometric="minisblack", planarconfig="contig", subfiletype=1)
    assert (np.asarray(read_bands(io.BytesIO(file.getvalue()), "scene", 4)) == numbers(4)).all()
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for values in (numbers(4), numbers(4)[::2, ::2].copy()):
            writer.write(values, photometric="minisblack", planarconfig="contig")
    with pytest.raises(UnreadableImageError, match="holds 2 pictures"):
        read_bands(io.BytesIO(file.getvalue()), "scene", 4)


# --- pictures that are read as RGB ---


@pytest.fixture
def told(caplog, monkeypatch):
    monkeypatch.setattr(image_files_module, "_told", set())
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.mark.parametrize(
    ("file", "channels"),
    [
        (lambda: tiff(numbers(4, np.uint8), planarconfig="contig"), 4),
        (lambda: tiff(numbers(4, np.uint8), planarconfig="contig", photometric="rgb", extrasamples=[0]), 4),
        (lambda: tiff(numbers(5, np.uint8), planarconfig="contig", photometric="rgb", extrasamples=[0, 0]), 5),
        (lambda: tiff(numbers(13), planarconfig="contig"), 13),
        (lambda: tiff(numbers(2), planarconfig="contig"), 2),
    ],
)
def test_bands_that_rgb_has_no_place_for_are_refused_with_the_way_to_read_them(file, channels):
    with pytest.raises(ValueError, match=rf"photo: has {channels} channels \(bands\).*num_channels={channels}"):
        read_rgb(file(), "photo")


def test_a_fourth_channel_marked_as_transparency_is_told_once(told):
    file = tiff(numbers(4, np.uint8), planarconfig="contig", photometric="rgb", extrasamples=[2])
    assert read_rgb(file, "north.tif").mode == "RGB"
    read_rgb(file, "south.tif")
    assert told.text.count("has transparent pixels") == 1
    assert "north.tif has transparent pixels" in told.text


@pytest.mark.parametrize("alpha", [0, 254, 255])
def test_transparency_of_a_png_is_told_where_there_is_some(alpha, told):
    image = Image.new("RGBA", (4, 4), (9, 8, 7, 255))
    image.putpixel((1, 2), (9, 8, 7, alpha))
    assert read_rgb(picture(image, "PNG"), "photo").getpixel((1, 2)) == (9, 8, 7)
    assert ("has transparent pixels" in told.text) == (alpha < 255)


def test_colours_of_16_bits_are_told_of_and_a_grey_one_is_refused(told):
    read_rgb(tiff(numbers(3), photometric="rgb"), "photo")
    assert "photo has more than 8 bits per channel; the upper 8 are taken. num_channels=3 keeps them all." in told.text
    with pytest.raises(ValueError, match=r"more than 8 bits per channel\. num_channels=1 reads it as it is"):
        read_rgb(tiff(numbers(1)[..., 0]), "photo")


def test_a_png_of_16_bit_colours_gives_the_upper_8_and_says_so(told):
    imagecodecs = pytest.importorskip("imagecodecs", reason="needs imagecodecs (pip install hf-segkd[tiff])")
    colours = np.arange(4 * 5 * 3, dtype=np.uint16).reshape(4, 5, 3) * 1000
    image = read_rgb(io.BytesIO(imagecodecs.png_encode(colours)), "photo")
    assert np.array_equal(image, colours >> 8)
    assert "photo has 16 bits per channel; the upper 8 are taken." in told.text
    told.clear()
    read_rgb(io.BytesIO(imagecodecs.png_encode((colours >> 8).astype(np.uint8))), "photo")
    assert told.text == ""


# --- in data sets and augmentation ---


def band_tree(root, bands=5):
    trees.folder_tree(root)
    for split in ("train", "val"):
        for seed, image in enumerate(sorted((root / split / "images").iterdir())):
            tifffile.imwrite(image.with_suffix(".tif"), numbers(bands, seed=seed), photometric="minisblack")
            image.unlink()
    return root


CLASSES = ["road", "car", "sky"]


def test_a_data_set_keeps_its_bands_through_selection_and_without_its_labels(tmp_path):
    dataset = load_segmentation_dataset("folder", band_tree(tmp_path), classes=CLASSES, num_channels=5)
    check_dataset(dataset)
    assert stored_channels(dataset.select([1])) == stored_channels(without_labels(dataset)) == 5
    image = without_labels(dataset)[1]["image"]
    assert isinstance(image, MultiBandImage)
    assert (image.size, len(image.getbands())) == ((WIDTH, HEIGHT), 5)
    assert (np.asarray(image) == numbers(5, seed=1)).all()
    unlabelled = load_unlabelled_images(tmp_path / "train" / "images", num_channels=5)
    check_dataset(unlabelled)
    assert (np.asarray(unlabelled[2]["image"]) == numbers(5, seed=2)).all()


def test_bands_of_another_size_than_the_mask_are_an_error(tmp_path):
    band_tree(tmp_path)
    tifffile.imwrite(tmp_path / "train" / "images" / "scene1.tif", numbers(5)[:, :-1], photometric="minisblack")
    with pytest.raises(ValueError, match=r"scene1.tif is 15 x 12 pixels but its mask .* is 16 x 12"):
        check_dataset(load_segmentation_dataset("folder", tmp_path, classes=CLASSES, num_channels=5))


@pytest.mark.parametrize("value", [0, -1, "5", 2.5])
def test_a_number_of_channels_that_is_none_is_an_error(tmp_path, value):
    with pytest.raises(ValueError, match="num_channels must be the number of bands"):
        load_segmentation_dataset("folder", band_tree(tmp_path), classes=CLASSES, num_channels=value)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.5), (0.7, 1.9)])
def test_bands_of_8_bits_are_augmented_as_rgb_is_but_for_its_rounding(scale):
    rng = np.random.default_rng(3)
    values = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    mask = Image.fromarray(rng.integers(0, 3, (40, 50), dtype=np.uint8))
    mean, std = [0.4, 0.5, 0.3], [0.2, 0.3, 0.1]
    as_rgb = TrainTransform((24, 28), scale, image_mean=mean, image_std=std)
    as_bands = TrainTransform(
        (24, 28), scale, image_mean=[255 * m for m in mean], image_std=[255 * s for s in std], rescale_factor=1.0
    )
    for seed in range(5):
        expected = as_rgb(Image.fromarray(values), mask, np.random.default_rng(seed))
        found = as_bands(MultiBandImage(values), mask, np.random.default_rng(seed))
        assert (found["labels"] == expected["labels"]).all()
        difference = found["pixel_values"] - expected["pixel_values"]
        assert difference.abs().max() < 1.05 / 255 / 0.1  # PIL rounds in two passes


def test_a_crop_of_many_bands_has_them_all_and_no_photometric_change(tmp_path):
    values, mask = numbers(7), Image.new("L", (WIDTH, HEIGHT))
    transform = TrainTransform(
        (HEIGHT, WIDTH), (1.0, 1.0), flip_probability=1, image_mean=range(7), image_std=[2.0] * 7, rescale_factor=1.0
    )
    found = transform(MultiBandImage(values), mask, np.random.default_rng(0))["pixel_values"]
    assert found.numpy() == pytest.approx((np.moveaxis(values[:, ::-1], 2, 0) - np.arange(7)[:, None, None]) / 2)
    transform = TrainTransform((4, 4), image_mean=range(7), image_std=[2.0] * 7, photometric="jitter")
    with pytest.raises(ValueError, match="photometric 'PhotoMetricDistortion' changes RGB pictures"):
        transform(MultiBandImage(values), mask, np.random.default_rng(0))


def test_training_samples_of_bands_depend_on_seed_epoch_and_index_alone(tmp_path):
    dataset = load_segmentation_dataset("folder", band_tree(tmp_path), classes=CLASSES, num_channels=5)
    transform = TrainTransform((8, 8), image_mean=[100.0] * 5, image_std=[50.0] * 5, rescale_factor=1.0)
    once, again = (AugmentedDataset(dataset, transform, seed=4)[2]["pixel_values"] for _ in range(2))
    assert once.shape == (5, 8, 8)
    assert (once == again).all()


def test_a_picture_to_look_at_shows_the_first_three_bands_from_dark_to_bright():
    values = np.zeros((10, 100, 4), dtype=np.uint16)
    values[..., :3] = 1000 + np.arange(100)[None, :, None] * np.array([1, 20, 300])
    shown = np.asarray(MultiBandImage(values).convert("RGB"))
    assert shown.shape == (10, 100, 3)
    assert (shown[:, 0] == 0).all()
    assert (shown[:, -1] == 255).all()
    assert (np.ptp(shown.astype(int), axis=2) <= 1).all()
    assert np.asarray(MultiBandImage(values[..., 3:]).convert("RGB")).max() == 0


# --- statistics ---


def images_of(arrays, num_channels):
    rows = {"image": [{"path": None, "bytes": tiff(values).getvalue()} for values in arrays]}
    features = datasets.Features({"image": datasets.Image(decode=False)})
    dataset = without_labels(datasets.Dataset.from_dict(rows, features=features))
    from hf_segkd.data.decoding import with_stored_channels

    return with_stored_channels(dataset, num_channels)


def test_statistics_do_not_cancel_and_weigh_pixels_not_images():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(1e7, 0.5, (height, 9, 2)) for height in (3, 50, 11)]
    counted = count_statistics(images_of(arrays, 2))
    pixels = np.concatenate([values.reshape(-1, 2) for values in arrays])
    assert counted.mean == pytest.approx(pixels.mean(0), rel=1e-14)
    assert counted.std == pytest.approx(pixels.std(0), rel=1e-9)
    assert (counted.smallest == pixels.min(0)).all()
    assert (counted.largest == pixels.max(0)).all()
    assert (counted.num_images, counted.num_pixels) == (3, 64 * 9)


def test_statistics_of_rgb_are_those_after_rescaling():
    dataset = load_segmentation_dataset("demo", num_images=3)
    values = processor_values(count_statistics(dataset), dataset)
    pixels = np.stack([np.asarray(row["image"]) for row in dataset]) / 255
    assert values["num_channels"] is None
    assert values["image_mean"] == pytest.approx(pixels.mean((0, 1, 2)), rel=1e-12)
    assert values["image_std"] == pytest.approx(pixels.std((0, 1, 2)), rel=1e-12)


def test_a_band_that_is_one_number_is_refused_by_its_number():
    values = numbers(3)
    values[..., 1] = 7
    with pytest.raises(ValueError, match=r"Channels 2 \(from 1\) have the same number in all pixels"):
        count_statistics(images_of([values, values], 3))
