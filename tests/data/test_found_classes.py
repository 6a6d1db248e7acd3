import json
import logging

import numpy as np
import pytest
from PIL import Image

from hf_segkd.data import label_info, load_segmentation_dataset
from hf_segkd.data.folder import with_found_classes

GREEN, BROWN, BLACK = (0, 128, 0), (100, 60, 20), (0, 0, 0)


@pytest.fixture
def folder(tmp_path, caplog):
    """Writes masks, those of the last one as the split val, and gives the folder; each a list of numbers or colours."""

    def write(*masks, mode=None):
        caplog.set_level(logging.WARNING)
        for place, values in enumerate(masks):
            split = "val" if place == len(masks) - 1 else "train"
            pixels = np.array(values, dtype=np.uint16 if np.max(values) > 255 else np.uint8)[None]
            for kind in ("images", "masks"):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", pixels.shape[1::-1]).save(tmp_path / split / "images" / f"{place}.png")
            mask, suffix = Image.fromarray(pixels), "tif" if mode == "F" else "png"
            (mask if mode is None else mask.convert(mode)).save(tmp_path / split / "masks" / f"{place}.{suffix}")
        return tmp_path

    return write


def load(folder, split="train", **options):
    return load_segmentation_dataset("folder", folder, split, **options)


def ids(dataset):
    return [np.asarray(row["annotation"]).ravel().tolist() for row in dataset]


def flag_in(text):
    """The options that a message says to type."""
    return json.loads(text.partition("--dataset_options '")[2].partition("'")[0])


@pytest.mark.parametrize(
    ("masks", "names", "read"),
    [
        ([[0, 0, 1], [2, 0, 0]], ["class 0", "class 1", "class 2"], [0, 0, 1]),  # 2 in the other split alone
        ([[1, 2, 3], [1, 1, 1]], ["class 1", "class 2", "class 3"], [0, 1, 2]),
        ([[0, 1, 255], [1, 1, 1]], ["class 0", "class 1"], [0, 1, 255]),
        ([[1, 2, 255], [1, 1, 1]], ["class 1", "class 2"], [0, 1, 255]),
        ([[7, 26, 7], [7, 11, 7]], ["class 7", "class 11", "class 26"], [0, 2, 0]),
        ([[0, 255, 255], [0, 0, 0]], ["background", "foreground"], [0, 1, 1]),
        ([[0, 127, 0], [0, 0, 0]], ["class 0", "class 127"], [0, 1, 0]),
        ([[0, 300, 0], [0, 0, 0]], ["class 0", "class 300"], [0, 1, 0]),
    ],
)
def test_numbers_in_the_masks_of_all_splits_are_the_classes_and_the_line_to_type_is_the_same(
    folder, caplog, masks, names, read
):
    root = folder(*masks)
    found = load(root)
    assert [*label_info(found).id2label.values()] == names
    assert label_info(load(root, "val")) == label_info(found)
    assert ids(found) == [read]
    (message,) = caplog.messages  # once, though there are two splits
    assert ids(load(root, **flag_in(message))) == [read]
    caplog.clear()
    options = with_found_classes(root, "train", {"seed": 1})
    assert json.loads(json.dumps(options)) == options
    assert ids(load(root, **options)) == [read]
    assert caplog.messages == []


def test_colours_are_classes_and_one_without_class_is_told_how_to_take_out(folder, caplog):
    root = folder([GREEN, BLACK], [BROWN, BROWN])
    found = load(root)
    assert [*label_info(found).id2label.values()] == ["#000000", "#008000", "#643C14"]
    assert label_info(found).palette == [BLACK, GREEN, BROWN]
    assert ids(found) == [[1, 0]]
    (message,) = caplog.messages
    assert '"ignore_index": [[0, 0, 0]]' in message
    options = flag_in(message)
    assert ids(load(root, **options)) == [[1, 0]]
    del options["classes"][0], options["palette"][0]
    assert ids(load(root, **options, ignore_index=[[0, 0, 0]])) == [[0, 255]]


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "F", "I"])
def test_masks_of_any_mode_that_is_read_are_counted(folder, mode):
    found = load(folder([0, 255], [0, 0], mode=mode) if mode == "1" else folder([0, 1], [0, 0], mode=mode))
    assert [*label_info(found).id2label.values()] == ["class 0", "class 1"]
    assert ids(found) == [[0, 1]]


def test_masks_of_a_mode_that_is_not_read_are_refused_by_name(folder):
    with pytest.raises(ValueError, match=r"masks/0\.png: the mask has mode LA, need one channel"):
        load(folder([0, 1], [0, 0], mode="LA"))


def test_numbers_in_three_equal_channels_are_numbers(folder):
    found = load(folder([(1, 1, 1), (0, 0, 0)], [(0, 0, 0), (255, 255, 255)]))
    assert [*label_info(found).id2label.values()] == ["class 0", "class 1"]
    assert ids(found) == [[1, 0]]


@pytest.mark.parametrize("masks", [[[0, 85, 170, 255], [0, 0, 0, 0]], [[1, 255], [1, 1]]])
def test_where_255_could_be_both_both_lines_are_told_and_each_reads_it_so(folder, masks):
    root = folder(*masks)
    with pytest.raises(ValueError, match="255 may be a class or mean no class") as error:
        load(root)
    as_class, as_none = (flag_in(line) for line in str(error.value).split("\n"))
    assert ids(load(root, **as_class))[0][-1] == len(as_class["classes"]) - 1
    assert ids(load(root, **as_none))[0][-1] == 255


@pytest.mark.parametrize(
    ("masks", "told"),
    [
        ([[0, 0], [0, 0]], "all masks hold the number 0 and no other"),
        ([[255, 255], [255, 255]], "all masks hold the number 255 and no other"),
        ([[*range(9), 0], [0, 1, 2, 3] + [0] * 6], "that is how objects are numbered"),
        ([[*range(0, 200, 2)], [0] * 100], "100 different numbers .* numbered objects .* smoothed"),
        ([[(level, 0, 0) for level in range(100)], [(0, 0, 0)] * 100], "100 different colours .* smoothed"),
    ],
)
def test_masks_that_hold_no_classes_are_refused(folder, masks, told):
    with pytest.raises(ValueError, match=told):
        load(folder(*masks))


def test_masks_in_thousands_of_colours_are_refused_by_name(folder):
    colours = [(a, b, 7) for a in range(100) for b in range(100)]
    with pytest.raises(ValueError, match=r"masks/0\.png holds thousands of colours: it is a picture and no mask"):
        load(folder(colours, colours))


def test_nine_classes_that_do_not_count_in_each_mask_are_classes(folder):
    assert len(label_info(load(folder([*range(9)], [0, 8, 0, 0, 0, 0, 0, 0, 0]))).id2label) == 9


def test_a_class_file_in_the_folder_comes_first_and_several_are_refused(folder, caplog):
    root = folder([0, 1, 1], [0, 0, 0])
    (root / "classes.txt").write_text("soil\nwater\n")
    assert [*label_info(load(root)).id2label.values()] == ["soil", "water"]
    assert f"those of {root / 'classes.txt'}: soil, water" in caplog.text
    (root / "labelmap.txt").write_text("soil:::\nwater:::\n")
    with pytest.raises(ValueError, match=r"several class files: classes\.txt, labelmap\.txt\. Say which") as error:
        load(root)
    assert flag_in(str(error.value)) == {"classes": "classes.txt"}


def test_what_says_how_classes_are_read_needs_classes(folder):
    with pytest.raises(ValueError, match="ignore_index: of which classes"):
        load(folder([0, 1], [0, 1]), ignore_index=0)


@pytest.mark.parametrize(
    ("masks", "options", "read"),
    [
        ([[0, 255], [0, 0]], {}, [0, 1]),
        ([[0, 0], [255, 0]], {}, [0, 0]),  # read until one holds more than 0
        ([[(0, 0, 0), (255, 255, 255)], [(0, 0, 0)] * 2], {}, [0, 1]),
        ([[0, 255], [0, 1]], {}, [0, 255]),  # 255 is no class where there is a 1
        ([[0, 255], [0, 0]], {"ignore_index": 255}, [0, 255]),  # said so
    ],
)
def test_of_two_named_classes_255_is_the_second_where_all_masks_hold_0_and_255_alone(
    folder, caplog, masks, options, read
):
    assert ids(load(folder(*masks), classes=["slide", "cell"], **options)) == [read]
    assert ("255 is taken for 'cell'" in caplog.text) == (1 in read or masks[1][0] == 255)


def test_of_three_named_classes_255_is_none(folder):
    assert ids(load(folder([0, 255], [0, 0]), classes=["a", "b", "c"])) == [[0, 255]]
