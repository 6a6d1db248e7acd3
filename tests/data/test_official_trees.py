import re
import shutil

import numpy as np
import pytest
import trees

from hf_segkd.data import label_info, load_segmentation_dataset
from hf_segkd.data.voc import load_voc2012_aug


def annotation(dataset, row=0):
    return np.asarray(dataset[row]["annotation"])


def test_voc_palette_masks_keep_their_indices(tmp_path):
    trees.voc_tree(tmp_path, {"train": ["2007_000032"]}, [0, 15, 20, 255])
    dataset = load_segmentation_dataset("voc2012", tmp_path, "train", check_size=False)
    row = dataset[0]
    assert (row["image"].mode, row["annotation"].mode, row["image_id"]) == ("RGB", "L", "2007_000032")
    assert np.array_equal(np.asarray(row["annotation"]), trees.mask_of([0, 15, 20, 255]))
    info = label_info(dataset)
    assert (info.name, info.num_labels, info.id2label[15], info.id2label[20]) == ("voc2012", 21, "person", "tvmonitor")
    assert (info.palette[0], info.palette[15], info.palette[20]) == ((0, 0, 0), (192, 128, 128), (0, 64, 128))


def test_voc_is_found_from_the_devkit_and_from_its_own_folder(tmp_path):
    trees.voc_tree(tmp_path, {"val": ["2007_000033"]}, [0])
    for place in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        assert len(load_segmentation_dataset("voc2012", str(place), "validation", check_size=False)) == 1


def test_voc_trainval_follows_its_list(tmp_path):
    trees.voc_tree(tmp_path, {"trainval": ["a", "b", "c"], "val": ["b"]}, [0])
    dataset = load_segmentation_dataset("voc2012", tmp_path, "trainval", check_size=False)
    assert dataset["image_id"][:] == ["a", "b", "c"]


def test_an_incomplete_voc_is_an_error_that_gives_both_numbers(tmp_path):
    trees.voc_tree(tmp_path, {"train": ["a", "b"]}, [0])
    with pytest.raises(ValueError, match=r"found 2 images, the official split has 1464.*check_size=False"):
        load_segmentation_dataset("voc2012", tmp_path, "train")


def test_a_missing_image_of_a_list_is_named(tmp_path):
    trees.voc_tree(tmp_path, {"train": ["a", "b"]}, [0])
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/b.jpg").unlink()
    with pytest.raises(ValueError, match="1 of 2 have no image: b"):
        load_segmentation_dataset("voc2012", tmp_path, "train", check_size=False)


def test_a_wrong_split_lists_those_there_are(tmp_path):
    trees.voc_tree(tmp_path, {"train": ["a"]}, [0])
    with pytest.raises(ValueError, match="no split 'test'; there are: train, val, trainval"):
        load_segmentation_dataset("voc2012", tmp_path, "test")


@pytest.mark.parametrize("list_name", ["train_aug", "trainaug"])
def test_augmented_voc_follows_its_list(tmp_path, list_name):
    trees.voc_tree(tmp_path, {"train": ["a", "b"], list_name: ["a", "c"]}, [0, 255], masks="SegmentationClassAug")
    dataset = load_segmentation_dataset("voc2012_aug", tmp_path, "train", check_size=False)
    assert dataset["image_id"][:] == ["a", "c"]
    assert label_info(dataset).name == "voc2012_aug"


def test_augmented_voc_without_a_list_takes_all_masks_but_those_of_val(tmp_path):
    trees.voc_tree(tmp_path, {"train": ["a", "b"], "val": ["c"]}, [1], masks="SegmentationClassAug")
    dataset = load_segmentation_dataset("voc2012_aug", tmp_path, "train", check_size=False)
    assert dataset["image_id"][:] == ["a", "b"]


def test_augmented_voc_is_validated_on_the_masks_of_voc(tmp_path):
    trees.voc_tree(tmp_path, {"val": ["c"]}, [1], masks="SegmentationClassAug")
    trees.voc_tree(tmp_path, {"val": ["c"]}, [2, 255])
    dataset = load_segmentation_dataset("voc2012_aug", tmp_path, "val", check_size=False)
    assert set(np.unique(annotation(dataset))) == {2, 255}


def test_augmented_voc_without_its_masks_says_what_to_get(tmp_path):
    trees.voc_tree(tmp_path, {"train": ["a"], "train_aug": ["a"]}, [0])
    with pytest.raises(ValueError, match=r"SegmentationClassAug.*SBD"):
        load_voc2012_aug(tmp_path, "train")


def test_cityscapes_label_ids_become_the_19_train_ids(tmp_path):
    raw = [*range(34), 255]
    trees.cityscapes_tree(tmp_path, raw)
    dataset = load_segmentation_dataset("cityscapes", tmp_path, "train", check_size=False)
    assert dataset["image_id"][:] == ["aachen_000000_000019", "zurich_000000_000019"]
    # Transcribed from the table of cityscapesScripts, labels.py.
    expected = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, *range(6, 16), 255, 255, 16, 17, 18, 255]
    assert annotation(dataset).ravel()[:35].tolist() == expected
    info = label_info(dataset)
    assert [info.id2label[i] for i in (0, 10, 13, 18)] == ["road", "sky", "car", "bicycle"]
    assert info.palette[13] == (0, 0, 142)


def test_cityscapes_train_ids_are_read_as_they_are(tmp_path):
    trees.cityscapes_tree(tmp_path, [33])
    trees.cityscapes_tree(tmp_path, [0, 18, 255], kind="labelTrainIds")
    dataset = load_segmentation_dataset("cityscapes", tmp_path, "val", check_size=False)
    assert np.array_equal(annotation(dataset), trees.mask_of([0, 18, 255]))


def test_cityscapes_with_train_ids_for_some_images_takes_the_label_ids(tmp_path):
    trees.cityscapes_tree(tmp_path, [7])
    trees.cityscapes_tree(tmp_path, [5], kind="labelTrainIds")
    (tmp_path / "gtFine/train/zurich/zurich_000000_000019_gtFine_labelTrainIds.png").unlink()
    dataset = load_segmentation_dataset("cityscapes", tmp_path, "train", check_size=False)
    assert set(np.unique(annotation(dataset))) == {0}


def test_label_ids_in_a_train_ids_file_are_suspected(tmp_path):
    trees.cityscapes_tree(tmp_path, [7, 26, 33], kind="labelTrainIds")
    dataset = load_segmentation_dataset("cityscapes", tmp_path, "val", check_size=False)
    with pytest.raises(ValueError, match=r"munster_000000_000019_gtFine_labelTrainIds.png: label out of range: 26, 33"):
        dataset[0]
    with pytest.raises(ValueError, match="labelIds instead of trainIds"):
        dataset[0]


def test_cityscapes_names_the_missing_cities(tmp_path):
    trees.cityscapes_tree(tmp_path, [7])
    with pytest.raises(ValueError, match=r"official split has 500. Missing cities: frankfurt, lindau"):
        load_segmentation_dataset("cityscapes", tmp_path, "val")


def test_a_missing_folder_is_answered_with_the_layout(tmp_path):
    trees.cityscapes_tree(tmp_path, [7])
    shutil.rmtree(tmp_path / "gtFine")
    with pytest.raises(ValueError, match=re.escape("gtFine/{train,val}/{city}")):
        load_segmentation_dataset("cityscapes", tmp_path, "val")
    with pytest.raises(ValueError, match="is not a folder"):
        load_segmentation_dataset("cityscapes", tmp_path / "nowhere", "val")
    with pytest.raises(ValueError, match="data_dir is needed"):
        load_segmentation_dataset("cityscapes", split="val")


def test_an_unpaired_cityscapes_image_is_named(tmp_path):
    trees.cityscapes_tree(tmp_path, [7])
    (tmp_path / "gtFine/train/zurich/zurich_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 have no mask: zurich_000000_000019"):
        load_segmentation_dataset("cityscapes", tmp_path, "train", check_size=False)


def test_ade20k_shifts_its_labels_without_wrapping_round(tmp_path):
    raw = [0, 1, 2, 149, 150, 255]
    trees.ade_tree(tmp_path, raw)
    dataset = load_segmentation_dataset("ade20k", tmp_path, "val", check_size=False)
    assert annotation(dataset).ravel()[:6].tolist() == [255, 0, 1, 148, 149, 255]
    info = label_info(dataset)
    assert (info.num_labels, info.id2label[0], info.id2label[149]) == (150, "wall", "flag")
    assert (info.palette[0], info.palette[149]) == ((120, 120, 120), (92, 0, 255))


def test_a_label_beyond_ade20k_is_an_error(tmp_path):
    trees.ade_tree(tmp_path, [0, 151, 254])
    dataset = load_segmentation_dataset("ade20k", tmp_path, "train", check_size=False)
    with pytest.raises(ValueError, match=r"ADE_train_00000001.png: label out of range: 151, 254; ade20k has 150"):
        dataset[0]


def test_an_incomplete_ade20k_names_the_missing_images(tmp_path):
    trees.ade_tree(tmp_path, [0])
    with pytest.raises(ValueError, match=r"found 1 images, .* 2000. Missing: ADE_val_00000002, ADE_val_00000003"):
        load_segmentation_dataset("ade20k", tmp_path, "validation")


def test_pascal_context_59_ignores_background_and_60_counts_it(tmp_path):
    trees.context_tree(tmp_path, [0, 1, 59])
    with_59 = load_segmentation_dataset("pascal_context_59", tmp_path, "train", check_size=False)
    with_60 = load_segmentation_dataset("pascal_context_60", tmp_path, "train", check_size=False)
    assert annotation(with_59).ravel()[:3].tolist() == [255, 0, 58]
    assert annotation(with_60).ravel()[:3].tolist() == [0, 1, 59]
    info_59, info_60 = label_info(with_59), label_info(with_60)
    assert (info_59.num_labels, info_60.num_labels) == (59, 60)
    assert [info_59.id2label[i] for i in (0, 58)] == ["aeroplane", "wood"]
    assert [info_60.id2label[i + 1] for i in range(59)] == list(info_59.id2label.values())
    assert info_60.palette[1:] == info_59.palette


def test_pascal_context_with_its_459_original_labels_is_an_error(tmp_path):
    trees.context_tree(tmp_path, [60])
    dataset = load_segmentation_dataset("pascal_context_60", tmp_path, "val", check_size=False)
    with pytest.raises(ValueError, match=r"2008_000003.png: label out of range: 60.*459"):
        dataset[0]


def test_an_incomplete_pascal_context_is_an_error(tmp_path):
    trees.context_tree(tmp_path, [0])
    with pytest.raises(ValueError, match="found 1 images, the official split has 5105"):
        load_segmentation_dataset("pascal_context_59", tmp_path, "val")


def test_pascal_context_without_its_list_says_so(tmp_path):
    trees.context_tree(tmp_path, [0])
    (tmp_path / "VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt").unlink()
    with pytest.raises(ValueError, match=r"val.txt does not exist"):
        load_segmentation_dataset("pascal_context_59", tmp_path, "val")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'cityscapes'"):
        load_segmentation_dataset("cityscape")


def test_unknown_and_missing_options_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"'voc2012' has no option 'classes'\. It has: check_size"):
        load_segmentation_dataset("voc2012", tmp_path, classes=["a"])
    with pytest.raises(ValueError, match=r"needs the option 'classes'.*--dataset_options '\{.classes.: "):
        load_segmentation_dataset("folder", hub_id="someone/scenes")  # whose masks are not all counted
