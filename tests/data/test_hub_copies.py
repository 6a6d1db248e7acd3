import re

import datasets
import numpy as np
import pytest
import trees
from PIL import Image

from hf_segkd.data import label_info, load_segmentation_dataset
from hf_segkd.data.labels import voc_palette
from hf_segkd.data.mask_ids import MaskReader
from hf_segkd.data.voc import voc_scheme


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def copy_on_hub(folder, mask_column, masks, split="train", **columns):
    """A folder with one parquet file per split, as repositories on the Hub hold them."""
    folder.mkdir(exist_ok=True)
    images = [Image.new("RGB", mask.shape[1::-1], (9, 9, 9)) for mask in masks]
    features = {"image": datasets.Image(), mask_column: datasets.Image()}
    rows = {"image": images, mask_column: [Image.fromarray(mask) for mask in masks], **columns}
    features |= {name: datasets.Value("string") for name in columns}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def annotation(dataset):
    return np.asarray(dataset[0]["annotation"])


def test_ade20k_of_the_hub_has_the_columns_and_labels_of_the_local_tree(tmp_path):
    hub_id = copy_on_hub(
        tmp_path / "ade", "annotation", [trees.mask_of([0, 1, 150])], "validation", scene_category=["street"]
    )
    dataset = load_segmentation_dataset("ade20k", hub_id=hub_id, split="val", check_size=False)
    assert dataset.column_names == ["image", "annotation", "image_id"]
    assert annotation(dataset).ravel()[:3].tolist() == [255, 0, 149]
    assert dataset[0]["image"].getpixel((0, 0)) == (9, 9, 9)
    assert dataset[0]["image_id"] == "validation_000000"
    assert label_info(dataset).id2label[149] == "flag"


def test_the_size_of_an_official_split_is_checked_under_either_name(tmp_path):
    hub_id = copy_on_hub(tmp_path / "ade", "annotation", [trees.mask_of([1])], "validation")
    with pytest.raises(ValueError, match="found 1 images, the official split has 2000"):
        load_segmentation_dataset("ade20k", hub_id=hub_id, split="val")


def test_voc_masks_in_colours_are_decoded(tmp_path):
    palette = np.array(voc_palette(256), dtype=np.uint8)
    indices = trees.mask_of([0, 7, 15, 20, 255])
    hub_id = copy_on_hub(tmp_path / "voc", "mask", [palette[indices]])
    dataset = load_segmentation_dataset("voc2012", hub_id=hub_id, check_size=False)
    assert np.array_equal(annotation(dataset), indices)


def test_voc_masks_of_indices_are_read_as_they_are(tmp_path):
    hub_id = copy_on_hub(tmp_path / "voc", "mask", [trees.mask_of([0, 20, 255])])
    dataset = load_segmentation_dataset("voc2012", hub_id=hub_id, check_size=False)
    assert annotation(dataset).ravel()[:3].tolist() == [0, 20, 255]


def test_all_colours_of_voc_are_told_apart_and_others_named(tmp_path):
    indices = np.array([[*range(21), 255]], dtype=np.uint8)
    palette = np.array(voc_palette(256), dtype=np.uint8)
    masks, path = MaskReader(voc_scheme("voc2012")), str(tmp_path / "mask.png")
    Image.fromarray(palette[indices]).save(path)
    assert np.array_equal(np.asarray(masks.read(path, path)), indices)
    for colour in ((1, 0, 0), (255, 255, 255), (0, 0, 1)):
        Image.new("RGB", (1, 1), colour).save(path)
        with pytest.raises(ValueError, match=re.escape(str(colour))):
            masks.read(path, path)


def test_cityscapes_masks_with_three_equal_channels_are_accepted_and_colours_rejected(tmp_path):
    equal = np.repeat(trees.mask_of([7, 26, 0])[..., None], 3, axis=2)
    hub_id = copy_on_hub(tmp_path / "equal", "semantic_segmentation", [equal])
    dataset = load_segmentation_dataset("cityscapes", hub_id=hub_id, check_size=False)
    assert annotation(dataset).ravel()[:3].tolist() == [0, 13, 255]
    equal[0, 0] = (128, 64, 128)
    hub_id = copy_on_hub(tmp_path / "colour", "semantic_segmentation", [equal])
    dataset = load_segmentation_dataset("cityscapes", hub_id=hub_id, check_size=False)
    with pytest.raises(ValueError, match=r"train_000000.* cannot read the RGB mask: its three channels differ"):
        dataset[0]


def test_any_hub_data_set_can_be_read_with_its_class_names(tmp_path):
    hub_id = copy_on_hub(tmp_path / "mine", "label", [trees.mask_of([0, 1])], image_id=["first"])
    dataset = load_segmentation_dataset("folder", hub_id=hub_id, classes=["off", "on"])
    assert dataset[0]["image_id"] == "first"
    assert label_info(dataset).id2label == {0: "off", 1: "on"}


def test_missing_splits_and_columns_are_errors(tmp_path):
    hub_id = copy_on_hub(tmp_path / "mine", "depth", [trees.mask_of([0, 1])])
    with pytest.raises(ValueError, match="no split 'val'; there are: train"):
        load_segmentation_dataset("folder", hub_id=hub_id, split="val", classes=["off", "on"])
    with pytest.raises(ValueError, match="there are: image, depth"):
        load_segmentation_dataset("folder", hub_id=hub_id, classes=["off", "on"])
    with pytest.raises(ValueError, match="replaces data_dir"):
        load_segmentation_dataset("voc2012", tmp_path, hub_id=hub_id)


@pytest.mark.parametrize(
    ("image", "mask", "named"),
    [
        ("pixel_values", "label", False),  # Hugging Face's SegFormer tutorial
        ("image", "segmentation", False),
        ("image", "semantic_segmentation", False),
        ("photo", "truth", True),
    ],
)
def test_columns_are_found_or_named(tmp_path, image, mask, named):
    rows = {image: [Image.new("RGB", (16, 12), (9, 9, 9))], mask: [Image.fromarray(trees.mask_of([0, 1]))]}
    features = datasets.Features({name: datasets.Image() for name in rows} | {"scene": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict({**rows, "scene": ["street"]}, features=features)
    (tmp_path / "mine").mkdir()
    dataset.to_parquet(tmp_path / "mine" / "train-00000-of-00001.parquet")
    options = {"hub_id": str(tmp_path / "mine"), "classes": ["off", "on"]}
    columns = {"image_column": image, "mask_column": mask} if named else {}
    loaded = load_segmentation_dataset("folder", **options, **columns)
    assert loaded.column_names == ["image", "annotation", "image_id"]
    assert loaded[0]["image"].getpixel((0, 0)) == (9, 9, 9)
    assert np.array_equal(annotation(loaded), trees.mask_of([0, 1]))
    with pytest.raises(ValueError, match=r"there is no column 'truht'. (Did you mean 'truth'\? )?There are: "):
        load_segmentation_dataset("folder", **options, image_column=image, mask_column="truht")
    with pytest.raises(ValueError, match="column scene must hold pictures"):
        load_segmentation_dataset("folder", **options, image_column=image, mask_column="scene")
