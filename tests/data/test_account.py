"""What the labels of a data set are, counted, and the mistakes that it tells of."""

import logging

import datasets
import numpy as np
import pytest
import trees
from PIL import Image

from hf_segkd.data import check_dataset, count_labels, label_info, load_segmentation_dataset
from hf_segkd.data.account import check_labels_of

CLASSES = ["road", "car", "sky"]


@pytest.fixture
def load(tmp_path):
    """A data set of these masks, arrays or pictures."""

    def load(*masks, **options):
        for number, mask in enumerate(masks):
            picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            trees.write_image(tmp_path / f"train/images/{number:02d}.jpg", picture.size[::-1])
            (tmp_path / "train/labels").mkdir(exist_ok=True)
            picture.save(tmp_path / f"train/labels/{number:02d}.png")
        return load_segmentation_dataset("folder", tmp_path, **{"classes": CLASSES, **options})

    return load


def warnings(caplog, dataset, **options):
    with caplog.at_level(logging.WARNING, logger="hf_segkd"):
        caplog.clear()
        check_dataset(dataset, **options)
    return [record.getMessage() for record in caplog.records]


def test_pixels_of_each_class_and_of_none_are_counted(load):
    first, second = np.array([[0, 0, 1], [2, 255, 255]], np.uint8), np.array([[2, 2, 2], [2, 2, 1]], np.uint8)
    dataset = load(first, second)
    for account in (count_labels(dataset), check_dataset(dataset)):
        assert account.pixels.tolist() == [2, 2, 6]
        assert (account.no_class, account.num_read, account.missing) == (2, 2, [])
        assert account.as_dict() == {
            "pixels": {"road": 2, "car": 2, "sky": 6},
            "no_class": 2,
            "masks_read": 2,
            "masks": 2,
        }
    assert str(account).splitlines() == [
        "Labels of folder, 2 masks:",
        "class             pixels      %",
        "road                   2   16.7",
        "car                    2   16.7",
        "sky                    6   50.0",
        "no class               2   16.7",
    ]


def test_only_some_masks_are_read_on_request(load, caplog):
    dataset = load(*[trees.mask_of([0, 1])] * 20)
    account = count_labels(dataset, 8)
    assert (account.num_read, account.num_masks) == (8, 20)
    assert "8 of 20 masks" in str(account)
    assert warnings(caplog, dataset, num_samples=8) == []  # the others may have the third class
    assert "No pixel is of the class 'sky'" in warnings(caplog, dataset)[0]


def test_a_correct_set_is_not_suspected(load, caplog):
    assert warnings(caplog, load(trees.mask_of([0, 1, 2, 255]), trees.mask_of([2, 1]))) == []


def test_binary_masks_of_0_and_255_are_suspected(load, caplog):
    binary = trees.mask_of([0, 255])
    options = {"classes": ["background", "crack"]}
    (said,) = warnings(caplog, load(binary, binary, ignore_index=255, **options))  # else 255 is taken for the class
    assert "only 0 and 255" in said
    assert "'crack' has not one pixel" in said
    assert "ids={0: 0, 255: 1}" in said
    assert warnings(caplog, load(binary, binary, ids={0: 0, 255: 1}, **options)) == []
    assert warnings(caplog, load(binary, binary, classes=["crack"])) == []  # 255 where it is not


def test_a_set_of_one_class_that_has_others_is_suspected_from_some_masks(load, caplog):
    (said,) = warnings(caplog, load(*[trees.mask_of([1])] * 20), num_samples=8)
    assert "All labelled pixels are 'car'" in said


def test_shifted_numbers_are_suspected_by_the_highest_class(load, caplog):
    (said,) = warnings(caplog, load(trees.mask_of([0, 1]), trees.mask_of([1])))
    assert "No pixel is of the class 'sky', which never occurs. The highest class, 2," in said
    assert "shifted by one" in said
    (said,) = warnings(caplog, load(trees.mask_of([0, 2]), trees.mask_of([2])))
    assert "'car', which never occurs. Does `classes` name too many" in said


def test_pixels_without_a_class_are_suspected_where_they_are_nearly_all(load, caplog):
    mostly = trees.mask_of([255], (20, 20))
    mostly[0, :3] = [0, 1, 2]
    (said,) = warnings(caplog, load(mostly))
    assert "99.2 % of the pixels have no class" in said


def test_palettes_that_differ_from_file_to_file_are_suspected(load, caplog):
    numbers, colours = trees.mask_of([0, 1, 2]), np.array(trees.voc_palette(3), dtype=np.uint8)
    masks = []
    for palette in (colours, colours[::-1]):
        masks.append(Image.fromarray(numbers))
        masks[-1].putpalette(palette.tobytes())
    assert warnings(caplog, load(masks[0], masks[0])) == []
    (said,) = warnings(caplog, load(*masks))
    assert "palettes of the masks differ from file to file" in said
    assert "read_colours=True" in said
    assert warnings(caplog, load(*masks, palette=colours.tolist(), read_colours=True)) == []


def test_a_set_without_a_labelled_pixel_is_refused_and_one_with_a_few_is_not(load, caplog):
    void = trees.mask_of([255])
    for check in (check_dataset, check_labels_of):
        with pytest.raises(ValueError, match="folder: not one pixel of 20 masks has a class"):
            check(load(*[void] * 20))
        labelled = [void] * 20
        labelled[6] = trees.mask_of([0])
        assert check(load(*labelled), **({"num_samples": 8} if check is check_dataset else {})).pixels.sum() == 0


def test_trainers_warn_of_what_no_check_has_said_of_this_data_set(load, caplog):
    binary = trees.mask_of([0, 255])
    dataset = load(binary, classes=["background", "crack"], ignore_index=255)
    with caplog.at_level(logging.WARNING, logger="hf_segkd"):
        check_labels_of(dataset)
        check_labels_of(dataset.select([0]))
        assert len(caplog.records) == 1
        check_dataset(dataset)
        assert len(caplog.records) == 2


def test_masks_of_missing_files_are_counted(load, tmp_path):
    load(trees.mask_of([0, 1]), trees.mask_of([0, 1]))
    (tmp_path / "train/labels/01.png").unlink()
    dataset = load_segmentation_dataset("folder", tmp_path, classes=CLASSES, missing_masks="sky")
    assert count_labels(dataset).pixels.tolist() == [96, 96, 192]


def test_joined_data_sets_keep_their_labels_and_others_are_refused(load, tmp_path):
    one = load(trees.mask_of([0, 1, 2]))
    trees.folder_tree(tmp_path / "two")
    two = load_segmentation_dataset("folder", tmp_path / "two", classes=CLASSES)
    joined = datasets.concatenate_datasets([one, two])
    assert label_info(joined).id2label == dict(enumerate(CLASSES))
    assert len(joined) == 4
    assert np.array_equal(np.asarray(joined[1]["annotation"]), np.asarray(two[0]["annotation"]))
    assert check_dataset(joined).num_read == 4
    other = load_segmentation_dataset("folder", tmp_path / "two", classes=CLASSES, ignore_index=0)
    with pytest.raises(ValueError, match="concatenate_datasets has joined data sets whose classes or options differ"):
        label_info(datasets.concatenate_datasets([one, other]))
