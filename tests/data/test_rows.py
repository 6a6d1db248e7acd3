"""Rows of data sets from elsewhere: every form of an image and of a mask is read as the same picture and class ids."""

import io

import datasets
import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from hf_segkd.data import LabelInfo, MultiBandImage, voc_palette
from hf_segkd.data.columns import ColumnNames, find_columns, kinds_of_features, kinds_of_row
from hf_segkd.data.rows import RowReader, scheme_of

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
MASK = np.array([[0, 1, 2, 255, 0, 1, 2]] * 5, dtype=np.uint8)


def reader(**options):
    labels = LabelInfo.from_names("own data", ["a", "b", "c"], voc_palette(3))
    return RowReader("train_dataset", scheme_of(labels, options.pop("reduce_labels", False)), **options)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def url_of(content):
    """As the cells of streams of the Hub, whose files lie elsewhere."""
    with fsspec.open("memory://image.png", "wb") as file:
        file.write(content)
    return {"path": "memory://image.png", "bytes": None}


IMAGES = {
    "PIL": lambda: Image.fromarray(PIXELS),
    "bytes": lambda: png(PIXELS),
    "a cell": lambda: {"path": None, "bytes": png(PIXELS)},
    "a URL": lambda: url_of(png(PIXELS)),
    "numpy": lambda: PIXELS,
    "channels first": lambda: torch.from_numpy(PIXELS).permute(2, 0, 1),
    "lists": lambda: PIXELS.tolist(),
}
MASKS = {
    "PIL": Image.fromarray(MASK),
    "bytes": png(MASK),
    "a cell": {"path": None, "bytes": png(MASK)},
    "numpy of uint8": MASK,
    "numpy of int8 with -1": np.where(MASK == 255, -1, MASK.astype(np.int8)).astype(np.int8),
    "torch of int64": torch.from_numpy(MASK.astype(np.int64)),
    "one channel first": torch.from_numpy(MASK.astype(np.int64))[None],
    "lists": MASK.tolist(),
    "whole floats": MASK.astype(np.float32),
}


@pytest.mark.parametrize("form", IMAGES)
def test_every_form_of_an_image_is_the_same_picture(form):
    read = reader().read({"image": IMAGES[form]()}, "row 3")
    assert np.array_equal(np.asarray(read["image"]), PIXELS)
    assert read.keys() == {"image", "image_id"}
    assert read["image_id"] == "row 3"


@pytest.mark.parametrize("form", MASKS)
def test_every_form_of_a_mask_is_the_same_class_ids(form):
    read = reader().read({"image": PIXELS, "mask": MASKS[form], "image_id": 12}, "row 3")
    assert read["annotation"].mode == "L"
    assert np.array_equal(np.asarray(read["annotation"]), MASK)
    assert read["image_id"] == "12"


def test_labels_are_reduced_as_image_processors_do_it():
    numbers = np.array([[0, 1, 2, 3, 255, 0, 1]] * 5, dtype=np.uint8)
    read = reader(reduce_labels=True).read({"image": PIXELS, "mask": numbers}, "row 3")
    assert np.asarray(read["annotation"])[0].tolist() == [255, 0, 1, 2, 255, 255, 0]


def test_bands_of_arrays_stay_as_they_are():
    bands = np.random.default_rng(1).integers(0, 4000, (5, 7, 4), dtype=np.uint16)
    read = reader(num_channels=4).read({"image": bands}, "row 0")
    assert isinstance(read["image"], MultiBandImage)
    assert np.array_equal(np.asarray(read["image"]), bands)
    with pytest.raises(ValueError, match="has 3 bands, and num_channels is 4"):
        reader(num_channels=4).read({"image": PIXELS}, "row 0")


def test_what_can_not_be_read_is_named():
    cases = {
        r"label of row 3: label out of range: 9; own data has 3 classes": {"label": MASK * 0 + 9},
        r"label of row 3: label out of range: -7\.\.0": {"label": np.array([[0, -7]])},
        r"row 3: image is 7 x 5 pixels but its mask label is 5 x 7": {"label": MASK.T},
        r"image of row 3 \(memory://nowhere.png\): cannot be read": {
            "image": {"path": "memory://nowhere.png", "bytes": None}
        },
        r"need uint8 of \(h, w, 3\)": {"image": PIXELS.astype(int) * 300},
        r"holds floats\. What is ready for the network is called pixel_values": {"image": PIXELS.astype(np.float32)},
        r"image and img could be meant; name one as image_column": {"img": PIXELS},
    }
    for message, entries in cases.items():
        with pytest.raises(ValueError, match=message):
            reader().read({"image": PIXELS, **entries}, "row 3")
    with pytest.raises(ValueError, match="train_dataset gives rows that are a tuple"):
        reader().read((PIXELS, MASK), "row 3")


def test_features_and_values_tell_the_same_of_a_column():
    values = {"a": Image.new("L", (2, 2)), "b": [[1, 2]], "c": 3, "d": "road", "e": np.zeros((3, 2, 2), np.float32)}
    nested = datasets.List(datasets.List(datasets.Value("int64")))
    features = {"a": datasets.Image(), "b": nested, "c": datasets.ClassLabel(names=["x", "y"]),
                "d": datasets.Value("string"), "e": datasets.Array3D((3, 2, 2), "float32")}  # fmt: skip
    expected = {"a": "picture", "b": "matrix", "c": "other", "d": "other", "e": "tensor"}
    assert kinds_of_row(values) == kinds_of_features(datasets.Features(features)) == expected


def test_a_number_of_a_whole_picture_is_no_mask():
    kinds = kinds_of_features(
        datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
    )
    assert find_columns(kinds, "train_dataset", ColumnNames()) == ("image", None)
