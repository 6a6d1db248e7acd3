import io
import pickle
import warnings

import datasets
import numpy as np
import pytest
import trees
from PIL import Image

from hf_segkd.data import LabelInfo, check_dataset, label_info, load_segmentation_dataset
from hf_segkd.data.labels import voc_palette

CLASSES = ["road", "car", "sky"]
ORIENTATION_TAG = 0x0112


@pytest.fixture
def tree(tmp_path):
    return trees.folder_tree(tmp_path)


def load(tree, **options):
    return load_segmentation_dataset("folder", tree, "train", classes=CLASSES, **options)


def replace_mask(tree, picture: Image.Image):
    picture.save(tree / "train" / "labels" / "scene1.png")


def blank(mode, size=(16, 12)):
    return Image.new(mode, size)


def test_labels_and_conversion_follow_the_data_set_everywhere(tree):
    dataset = load(tree)
    whole = [np.asarray(dataset[i]["annotation"]).tolist() for i in range(3)]
    for view in (
        dataset.select(range(3)),
        dataset.shuffle(seed=0),
        dataset.train_test_split(1 / 3, seed=0)["train"],
        pickle.loads(pickle.dumps(dataset)),
    ):
        assert label_info(view) == label_info(dataset)
        for row in view:
            index = dataset["image_id"][:].index(row["image_id"])
            assert np.asarray(row["annotation"]).tolist() == whole[index]


def test_columns_and_slices_can_be_read_alone(tree):
    dataset = load(tree)
    assert dataset["image_id"][:] == ["scene0", "scene1", "scene2"]
    assert [image.mode for image in dataset[:2]["image"]] == ["RGB", "RGB"]
    assert dataset.select_columns(["annotation"])[0]["annotation"].mode == "L"


def test_label_info_of_a_foreign_data_set_is_an_error(tree):
    foreign = datasets.Dataset.from_dict({"image": [1]})
    with pytest.raises(ValueError, match="not made by load_segmentation_dataset"):
        label_info(foreign)
    with pytest.raises(ValueError, match="set_format"):
        label_info(load(tree).with_format(None))


def test_label_info_rejects_gaps_missing_colours_and_too_many_classes():
    with pytest.raises(ValueError, match=r"class ids must be 0..1"):
        LabelInfo("mine", {0: "a", 2: "b"}, voc_palette(2))
    with pytest.raises(ValueError, match="2 classes need as many colours, got 3"):
        LabelInfo("mine", {0: "a", 1: "b"}, voc_palette(3))
    with pytest.raises(ValueError, match="got 65536 classes"):
        LabelInfo("mine", {i: str(i) for i in range(65536)}, voc_palette(65536))
    with pytest.raises(ValueError, match="classes 0 and 2 are both called 'other'"):
        LabelInfo("mine", {0: "other", 1: "car", 2: "other"}, voc_palette(3))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_in_colours_that_nobody_told_are_rejected_by_name(tree, mode):
    replace_mask(tree, Image.new(mode, (16, 12), "blue"))
    with pytest.raises(
        ValueError, match=rf"scene1.png: cannot read the {mode} mask: its three channels differ.*palette"
    ):
        check_dataset(load(tree))


@pytest.mark.parametrize("mode", ["LA", "CMYK"])
def test_masks_of_other_modes_are_rejected_by_name(tree, mode):
    picture = blank(mode)
    path = tree / "train" / "labels" / ("scene1.png" if mode != "CMYK" else "scene1.tif")
    (tree / "train" / "labels" / "scene1.png").unlink()
    picture.save(path)
    with pytest.raises(ValueError, match=rf"{path.name}: the mask has mode {mode}, need one channel"):
        check_dataset(load(tree))


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_masks_of_any_one_channel_mode_are_read(tree, mode):
    replace_mask(tree, blank(mode))
    assert set(np.unique(np.asarray(load(tree)[1]["annotation"]))) == {0}


def test_instance_ids_in_16_bits_are_suspected(tree):
    Image.fromarray(np.full((12, 16), 26001, dtype=np.uint16)).save(tree / "train" / "labels" / "scene1.png")
    with pytest.raises(ValueError, match=r"scene1.png: label out of range: 26001..26001 .*instance ids"):
        load(tree)[1]


def test_a_mask_of_another_size_is_an_error_naming_both_files(tree):
    replace_mask(tree, blank("L", (15, 12)))
    with pytest.raises(ValueError, match=r"scene1.jpg is 16 x 12 pixels but its mask .*scene1.png is 15 x 12"):
        load(tree)[1]


def test_a_photo_turned_by_exif_is_named_as_the_cause(tree):
    path = tree / "train" / "images" / "scene1.jpg"
    photo = Image.open(path)
    exif = photo.getexif()
    exif[ORIENTATION_TAG] = 6
    photo.save(path, exif=exif)
    with pytest.raises(ValueError, match="EXIF orientation 6"):
        load(tree)[1]
    replace_mask(tree, blank("L", (12, 16)))  # a mask drawn on the upright photo fits
    assert load(tree)[1]["image"].size == (12, 16)


@pytest.mark.parametrize("kind", ["images/scene2.jpg", "labels/scene2.png"])
def test_a_truncated_file_is_named(tree, kind):
    path = tree / "train" / kind
    trees.write_image(tree / "train" / "images" / "scene2.jpg", (200, 200))
    if kind.startswith("labels"):
        trees.write_mask(path, np.random.default_rng(0).integers(0, 3, (200, 200), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{path.name}: cannot be decoded, damaged or cut short"):
        check_dataset(load(tree))


def test_a_file_that_is_no_picture_is_named(tree):
    (tree / "train" / "images" / "scene0.jpg").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"scene0.jpg: cannot be decoded"):
        load(tree)[0]


def test_a_file_moved_after_loading_is_named(tree):
    dataset = load(tree)
    (tree / "train" / "images" / "scene0.jpg").unlink()
    with pytest.raises(ValueError, match=r"scene0.jpg: the file does not exist"):
        dataset[0]


@pytest.mark.parametrize("limit", [100, 50])  # 192 pixels: PIL alone would warn at the first, refuse at the second
def test_pictures_of_absurd_size_are_refused(tree, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ValueError, match=r"scene0.jpg: .*(more than the limit of 100|could be decompression bomb)"):
            load(tree)[0]


def test_grey_and_transparent_images_become_rgb(tree):
    path = tree / "train" / "images" / "scene0.jpg"
    blank("L").save(path)
    assert load(tree)[0]["image"].mode == "RGB"
    path.unlink()
    blank("RGBA").save(path.with_suffix(".png"))
    assert load(tree)[0]["image"].mode == "RGB"


def test_a_16_bit_image_is_an_error(tree):
    path = tree / "train" / "images" / "scene0.jpg"
    path.unlink()
    blank("I;16").save(path.with_suffix(".png"))
    with pytest.raises(ValueError, match=r"scene0.png: the image has mode I;16"):
        load(tree)[0]


def test_check_dataset_finds_a_bad_row_only_where_it_reads(tree):
    replace_mask(tree, Image.fromarray(trees.mask_of([3])))
    dataset = load(tree)
    check_dataset(dataset, num_samples=2)  # the first and the last
    with pytest.raises(ValueError, match=r"scene1.png: label out of range: 3; folder has 3 classes"):
        check_dataset(dataset)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        check_dataset(dataset, num_samples=0)


def test_check_dataset_rejects_an_empty_data_set(tree):
    with pytest.raises(ValueError, match="empty"):
        check_dataset(load(tree).select([]))


def test_pictures_held_in_memory_are_decoded_like_files(tree):
    buffer = io.BytesIO()
    blank("RGB").save(buffer, format="PNG")
    decode = load(tree).format["format_kwargs"]["transform"]
    assert decode({"image": [{"path": None, "bytes": buffer.getvalue()}]})["image"][0].size == (16, 12)
