import json
import os
from pathlib import Path

import numpy as np
import pytest
import trees

from hf_segkd.data import check_dataset, label_info, load_segmentation_dataset
from hf_segkd.data.labels import voc_palette

CLASSES = ["road", "car", "sky"]
CAMVID = Path(os.environ.get("HF_SEGKD_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "camvid"


@pytest.mark.parametrize("masks", ["labels", "masks", "annotations"])
@pytest.mark.parametrize("split_inside", [False, True])
def test_both_layouts_and_all_names_of_the_mask_folder_work(tmp_path, masks, split_inside):
    trees.folder_tree(tmp_path, masks, split_inside)
    dataset = load_segmentation_dataset("folder", tmp_path, "train", classes=CLASSES)
    assert dataset["image_id"][:] == ["scene0", "scene1", "scene2"]
    assert set(np.unique(np.asarray(dataset[0]["annotation"]))) == {0, 1, 2, 255}
    assert len(load_segmentation_dataset("folder", tmp_path, "validation", classes=CLASSES)) == 2


def test_class_names_come_from_a_list_a_text_file_or_json(tmp_path):
    trees.folder_tree(tmp_path)
    (tmp_path / "names.txt").write_text("road\ncar\n\nsky\n")
    (tmp_path / "list.json").write_text(json.dumps(CLASSES))
    (tmp_path / "meta.json").write_text(json.dumps({"classes": CLASSES, "size": [480, 360]}))
    for classes in (CLASSES, tmp_path / "names.txt", str(tmp_path / "list.json"), tmp_path / "meta.json"):
        info = label_info(load_segmentation_dataset("folder", tmp_path, classes=classes))
        assert info.id2label == {0: "road", 1: "car", 2: "sky"}
        assert info.palette == voc_palette(3)


def test_bad_class_files_are_errors(tmp_path):
    trees.folder_tree(tmp_path)
    with pytest.raises(ValueError, match=r"names.txt is not a file"):
        load_segmentation_dataset("folder", tmp_path, classes=tmp_path / "names.txt")
    (tmp_path / "names.json").write_text('{"road": 0}')
    with pytest.raises(ValueError, match="must hold a list of names"):
        load_segmentation_dataset("folder", tmp_path, classes=tmp_path / "names.json")


def test_palette_and_ignore_index_can_be_chosen(tmp_path):
    trees.folder_tree(tmp_path)
    colours = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    dataset = load_segmentation_dataset("folder", tmp_path, classes=CLASSES, palette=colours, ignore_index=0)
    assert np.asarray(dataset[0]["annotation"]).ravel()[:4].tolist() == [255, 1, 2, 255]
    assert label_info(dataset).palette == colours
    assert label_info(dataset).ignore_index == 255


def test_an_ignore_index_that_no_mask_can_hold_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"ignore_index must be .* got -1"):
        load_segmentation_dataset("folder", trees.folder_tree(tmp_path), classes=CLASSES, ignore_index=-1)


def test_unpaired_files_are_named_whichever_half_is_missing(tmp_path):
    trees.folder_tree(tmp_path)
    (tmp_path / "train" / "labels" / "scene1.png").unlink()
    with pytest.raises(ValueError, match="1 of 3 have no mask: scene1"):
        load_segmentation_dataset("folder", tmp_path, classes=CLASSES)
    (tmp_path / "train" / "images" / "scene1.jpg").unlink()
    (tmp_path / "train" / "images" / "scene2.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 2 have no image: scene2"):
        load_segmentation_dataset("folder", tmp_path, classes=CLASSES)


def test_two_images_of_one_name_are_an_error(tmp_path):
    trees.folder_tree(tmp_path)
    trees.write_image(tmp_path / "train" / "images" / "scene1.png")
    with pytest.raises(ValueError, match=r"scene1.jpg and .*scene1.png have the same name"):
        load_segmentation_dataset("folder", tmp_path, classes=CLASSES)


def test_missing_folders_splits_and_images_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"has no split. Expected layout: \{split\}/images"):
        load_segmentation_dataset("folder", tmp_path, classes=CLASSES)
    trees.folder_tree(tmp_path)
    with pytest.raises(ValueError, match="no split 'test'; there are: train, val"):
        load_segmentation_dataset("folder", tmp_path, "test", classes=CLASSES)
    (tmp_path / "test" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="No folder of masks"):
        load_segmentation_dataset("folder", tmp_path, "test", classes=CLASSES)
    (tmp_path / "test" / "labels").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        load_segmentation_dataset("folder", tmp_path, "test", classes=CLASSES)


def test_masks_saved_as_jpeg_are_rejected(tmp_path):
    trees.write_image(tmp_path / "train" / "images" / "a.jpg")
    trees.write_image(tmp_path / "train" / "labels" / "a.jpg")
    with pytest.raises(ValueError, match=r"a.jpg: JPEG changes label ids"):
        load_segmentation_dataset("folder", tmp_path, classes=CLASSES)


@pytest.mark.skipif(
    not CAMVID.is_dir(), reason="CamVid is not there: set HF_SEGKD_SHARED to the folder with data/camvid"
)
@pytest.mark.parametrize(("split", "num_images"), [("train", 367), ("val", 101), ("test", 233)])
def test_camvid_is_a_folder_data_set(split, num_images):
    dataset = load_segmentation_dataset("folder", CAMVID, split, classes=CAMVID / "meta.json")
    assert len(dataset) == num_images
    assert label_info(dataset).id2label[10] == "bicyclist"
    assert dataset[0]["image"].size == (480, 360)
    check_dataset(dataset, num_samples=10)


def test_pictures_that_are_not_read_are_told_of(tmp_path, caplog):
    trees.folder_tree(tmp_path)
    images = next(path for path in tmp_path.rglob("*") if path.name == "scene0.png" or path.suffix == ".jpg").parent
    for name in ("far.jp2", "away.JP2", "raw.heic", "notes.txt", "Thumbs.db"):
        (images / name).write_bytes(b"")
    load_segmentation_dataset("folder", tmp_path, "train", classes=CLASSES)
    (told,) = [message for message in caplog.messages if "left out" in message]
    assert told.startswith(f"{images}: 1 .heic, 2 .jp2 are left out. Pictures are read from .jpg, ")
