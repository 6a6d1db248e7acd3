"""What masks hold: each kind that people bring is read to the right class ids, or refused with its name."""

import shutil
import struct
import zlib

import numpy as np
import pytest
import trees
from PIL import Image

from hf_segkd.data import label_info, load_segmentation_dataset

CLASSES = ["road", "car", "sky"]
COLOURS = np.array([[128, 64, 128], [0, 0, 142], [70, 130, 180]], dtype=np.uint8)
IDS = trees.mask_of([0, 1, 2])  # the right answer


@pytest.fixture
def read(tmp_path):
    """Class ids of one mask, an array or a picture, loaded with options."""

    def read(mask, suffix="png", classes=CLASSES, **options):
        picture = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        trees.write_image(tmp_path / "train" / "images" / "a.jpg", picture.size[::-1])
        shutil.rmtree(tmp_path / "train" / "labels", ignore_errors=True)
        (tmp_path / "train" / "labels").mkdir()
        picture.save(tmp_path / "train" / "labels" / f"a.{suffix}")
        dataset = load_segmentation_dataset("folder", tmp_path, classes=classes, **options)
        return np.asarray(dataset[0]["annotation"])

    return read


def with_palette(numbers, colours):
    picture = Image.fromarray(numbers.astype(np.uint8))
    picture.putpalette(np.asarray(colours, dtype=np.uint8).tobytes())
    return picture


def test_masks_in_the_colours_of_the_classes_are_read_by_palette(read):
    assert np.array_equal(read(COLOURS[IDS], palette=COLOURS.tolist()), IDS)
    transparent = np.dstack([COLOURS[IDS], np.full(IDS.shape, 255, np.uint8)])
    assert np.array_equal(read(transparent, palette=COLOURS.tolist()), IDS)


def test_masks_in_colours_are_read_by_the_class_file_of_a_tool(read, tmp_path):
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nroad:128,64,128::\ncar:0,0,142::\nsky:70,130,180::\n"
    )
    assert np.array_equal(read(COLOURS[IDS], classes="labelmap.txt"), IDS)
    assert label_info(load_segmentation_dataset("folder", tmp_path, classes="labelmap.txt")).palette[1] == (0, 0, 142)


def test_a_colour_that_no_class_has_is_named_and_can_be_ignored(read):
    mask = COLOURS[IDS]
    mask[0, 0] = (224, 224, 192)
    with pytest.raises(ValueError, match=r"a.png: colours that no class has: \(224, 224, 192\)"):
        read(mask, palette=COLOURS.tolist())
    ids = read(mask, palette=COLOURS.tolist(), ignore_index=[[224, 224, 192]])
    assert ids[0, 0] == 255
    assert np.array_equal(ids.ravel()[1:], IDS.ravel()[1:])


def test_colours_can_be_merged(read):
    ids = {"128,64,128": 0, (0, 0, 142): 1, "70,130,180": None}
    assert read(COLOURS[IDS], classes=["road", "car"], ids=ids).ravel()[:3].tolist() == [0, 1, 255]


def test_numbers_in_three_equal_channels_are_read(read):
    equal = np.repeat(IDS[..., None], 3, axis=2)
    assert np.array_equal(read(equal), IDS)
    with pytest.raises(ValueError, match=r"colours that no class has.*read_colours=False"):
        read(equal, palette=COLOURS.tolist())
    assert np.array_equal(read(equal, palette=COLOURS.tolist(), read_colours=False), IDS)


def test_palette_masks_are_read_by_number_unless_their_colours_are_those_of_other_classes(read):
    shifted = np.roll(COLOURS, -1, axis=0)  # number 0 has the colour of class 1
    numbers = (IDS.astype(int) - 1) % 3
    mask = with_palette(numbers, shifted)
    assert np.array_equal(np.asarray(mask.convert("RGB")), COLOURS[IDS])
    assert np.array_equal(read(mask), numbers)  # nothing is known of the colours
    with pytest.raises(ValueError, match=r"number 0 of the palette mask is 'road', and its colour .* of 'car'"):
        read(mask, palette=COLOURS.tolist())
    assert np.array_equal(read(mask, palette=COLOURS.tolist(), read_colours=True), IDS)
    assert np.array_equal(read(mask, palette=COLOURS.tolist(), read_colours=False), numbers)


def test_palette_masks_whose_numbers_are_unknown_are_read_by_their_colours(read):
    palette = np.zeros((40, 3), dtype=np.uint8)
    palette[30:33] = COLOURS
    assert np.array_equal(read(with_palette(IDS + 30, palette), palette=COLOURS.tolist()), IDS)


def test_numbers_are_mapped_merged_and_left_out(read):
    raw = trees.mask_of([0, 1, 2, 7])
    ids = {1: 0, 2: 1, 7: 1, 0: None}
    for given in (ids, {str(number): class_id for number, class_id in ids.items()}):  # as JSON has them
        assert read(raw, classes=["road", "car"], ids=given).ravel()[:4].tolist() == [255, 0, 1, 1]
    with pytest.raises(ValueError, match="label out of range: 7"):
        read(raw, classes=["road", "car"], ids={1: 0, 2: 1, 0: None})


def test_a_dictionary_of_classes_gives_their_numbers(read, tmp_path):
    raw = trees.mask_of([0, 7, 26, 255])
    assert read(raw, classes={26: "car", "7": "road"}, ignore_index=0).ravel()[:4].tolist() == [255, 0, 1, 255]
    dataset = load_segmentation_dataset("folder", tmp_path, classes={26: "car", "7": "road"}, ignore_index=0)
    assert label_info(dataset).id2label == {0: "road", 1: "car"}
    with pytest.raises(ValueError, match=r"gives names to the numbers \[7, 26\], and ids too"):
        read(raw, classes={26: "car", 7: "road"}, ids={7: 0})


def test_ids_from_1_with_0_for_no_class(read):
    raw = trees.mask_of([0, 1, 2, 3])
    for options in ({"classes": {1: "a", 2: "b", 3: "c"}}, {"classes": CLASSES, "ids": {1: 0, 2: 1, 3: 2}}):
        assert read(raw, ignore_index=0, **options).ravel()[:4].tolist() == [255, 0, 1, 2]


def test_several_numbers_can_mean_no_class(read):
    raw = trees.mask_of([0, 1, 2, 3, 9])
    assert read(raw, ignore_index=[3, 9]).ravel()[:5].tolist() == [0, 1, 2, 255, 255]


def test_binary_masks_are_read_on_request(read):
    raw = trees.mask_of([0, 255])
    assert read(raw, classes=["good", "defect"], ids={"0": 0, "255": 1}).ravel()[:2].tolist() == [0, 1]
    assert read(raw, classes={0: "good", 255: "defect"}).ravel()[:2].tolist() == [0, 1]
    one_bit = Image.fromarray(raw > 0)
    assert one_bit.mode == "1"
    assert read(one_bit, classes=["good", "defect"]).ravel()[:2].tolist() == [0, 1]


def test_16_bit_masks_are_read_and_65535_is_no_class(read):
    wide = trees.mask_of([0, 1, 2, 255]).astype(np.uint16)
    wide[0, 0] = 65535
    for suffix in ("png", "tif"):
        assert read(wide, suffix).ravel()[:5].tolist() == [255, 1, 2, 255, 0]
    assert read(wide * 0 + 1000, classes=["a"], ids={1000: 0}).max() == 0


def test_floats_that_are_whole_numbers_are_read_and_others_named(read):
    for number in (0.0, 65535.0):
        mask = IDS.astype(np.float32)
        mask[0, 0] = number
        assert read(mask, "tif").ravel()[:3].tolist() == [0 if number == 0 else 255, 1, 2]
    for number in (0.5, np.nan, np.inf):
        mask[0, 0] = number
        with pytest.raises(ValueError, match=rf"a.tif: the mask holds {number}, and class ids are whole"):
            read(mask, "tif")
    mask[0, 0] = -1
    with pytest.raises(ValueError, match=r"label out of range: -1..2"):
        read(mask, "tif")


def test_gif_masks_are_read_by_their_palettes_numbers(read):
    assert np.array_equal(read(with_palette(IDS, COLOURS), "gif"), IDS)


def test_a_mask_of_four_bands_is_refused(read, tmp_path):
    read(IDS)
    mask = tmp_path / "train" / "labels" / "a.png"
    height, width = IDS.shape
    data = np.zeros((height, width, 4), dtype=np.uint8).tobytes()
    start = 8 + 2 + 12 * 11 + 4
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 4, start), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, start + 8), (277, 3, 1, 4), (278, 4, 1, height), (279, 4, 1, len(data)), (284, 3, 1, 1)]
    entries += [(338, 3, 1, 0)]  # the fourth is no alpha
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
    mask.with_suffix(".tif").write_bytes(head + struct.pack("<I4H", 0, 8, 8, 8, 8) + data)
    mask.unlink()
    with pytest.raises(ValueError, match=r"a.tif: the mask has mode RGB and 4 bands, need one channel"):
        load_segmentation_dataset("folder", tmp_path, classes=CLASSES)[0]


@pytest.mark.parametrize("compressed", [False, True])
def test_matrices_of_matlab_are_read(tmp_path, compressed):
    """A level 5 file made by hand from MathWorks' description: one 2 x 3 uint16 matrix LabelMap, column by column."""
    flags = struct.pack("<IIII", 6, 8, 11, 0)  # uint32: mxUINT16_CLASS
    shape = struct.pack("<IIii", 5, 8, 2, 3)
    name = struct.pack("<II8s", 1, 8, b"LabelMap")
    numbers = struct.pack("<II6HI", 4, 12, 1, 0, 2, 459, 459, 1, 0)  # padded to 8 bytes
    body = flags + shape + name + numbers
    element = struct.pack("<II", 14, len(body)) + body
    if compressed:
        packed = zlib.compress(element)
        element = struct.pack("<II", 15, len(packed)) + packed
    trees.write_image(tmp_path / "train" / "images" / "a.jpg", (2, 3))
    (tmp_path / "train" / "labels").mkdir()
    (tmp_path / "train" / "labels" / "a.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + element)
    names = {number: f"class {number}" for number in range(1, 460)}
    dataset = load_segmentation_dataset("folder", tmp_path, classes=names, ignore_index=0)
    assert np.asarray(dataset[0]["annotation"]).tolist() == [[0, 1, 458], [65535, 458, 0]]
    (tmp_path / "train" / "labels" / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(600))
    with pytest.raises(ValueError, match=r"a.mat: holds no matrix"):
        dataset[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ids": {0: 3}}, r"ids: 0 becomes 3, and there are classes 0 to 2 \(road, car, sky\), or None"),
        ({"ids": {-1: 0}}, r"ids must be numbers that a mask can hold, 0..65535, got -1"),
        ({"ids": {"red": 0}}, r"ids: a colour is \[r, g, b\] with 0 to 255.*got 'red'"),
        ({"ids": {255: 1}, "ignore_index": 255}, "ids gives the number 255 a class, and ignore_index none"),
        ({"ignore_index": [65536]}, "ignore_index must be numbers that a mask can hold"),
        ({"palette": [[0, 0, 300]]}, "palette: a colour is"),
        ({"palette": [[0, 0, 3]]}, "3 classes need as many colours, got 1"),
        ({"read_colours": True}, "give `palette`, or a class file with colours"),
        ({"missing_masks": "ca"}, "there is no class 'ca'. Did you mean 'car'"),
        ({"classes": ["road", "car", "road"]}, "classes 0 and 2 are both called 'road'"),
        ({"read_colors": True}, "no option 'read_colors'. Did you mean 'read_colours'"),
    ],
)
def test_options_that_make_no_sense_are_refused(read, options, message):
    with pytest.raises(ValueError, match=message):
        read(IDS, **options)


def test_masks_of_8_bits_are_read_where_there_are_more_than_255_classes(tmp_path):
    trees.folder_tree(tmp_path)
    dataset = load_segmentation_dataset("folder", tmp_path, classes=[f"class {number}" for number in range(300)])
    assert np.array_equal(np.asarray(dataset[0]["annotation"]), trees.mask_of([0, 1, 2, 255]))  # 255 is a class here


@pytest.mark.parametrize(
    ("ids", "numbers", "unknown"),
    [
        ({0: 0, 1: 1, 2: 2}, [0, 1, 2], None),
        ({0: 0, 1: 1, 2: 2, 255: None}, [0, 2, 255], None),
        ({0: 0, 7: 1, 255: 2}, [0, 7, 255], None),
        ({0: 0, 1: 1, 255: 2}, [255], None),
        ({0: 0, 1: 1, 2: 2, 254: None}, [0, 254], None),
        ({0: 0, 1: 1, 255: 2}, [0, 254, 255], 254),
        ({0: 0, 1: 1, 255: 2}, [0, 2], 2),
        ({0: 0, 2: 1, 3: 2}, [0, 1, 3], 1),
    ],
)
def test_each_number_is_known_or_refused_wherever_it_lies(read, ids, numbers, unknown):
    mask = trees.mask_of(numbers)
    if unknown is None:
        ignored = [255 if ids[number] is None else ids[number] for number in numbers]
        assert np.array_equal(read(mask, ids=ids), trees.mask_of(ignored))
    else:
        with pytest.raises(ValueError, match=f"label out of range: {unknown}; "):
            read(mask, ids=ids)
