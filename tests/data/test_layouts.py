"""Where images and masks lie, as tools and benchmarks arrange them: `load_folder` with plain arguments."""

import numpy as np
import pytest
import trees

from hf_segkd.data import load_segmentation_dataset

CLASSES = ["road", "car", "sky"]
IDS = trees.mask_of([0, 1, 2, 255])


def write(root, *pairs):
    """Image and mask files by their paths, each image with other pixels, each mask the same."""
    for seed, (image, mask) in enumerate(pairs):
        trees.write_image(root / image, seed=seed)
        if mask is not None:
            trees.write_mask(root / mask, IDS)
    return root


def load(root, split="train", **options):
    dataset = load_segmentation_dataset("folder", root, split, **{"classes": CLASSES, **options})
    assert np.array_equal(np.asarray(dataset[0]["annotation"]), IDS)
    return dataset["image_id"][:]


def test_roboflow_keeps_images_and_masks_in_one_folder(tmp_path):
    write(
        tmp_path,
        *((f"{split}/{n}.rf.1.jpg", f"{split}/{n}.rf.1_mask.png") for split in ("train", "valid") for n in "ab"),
    )
    (tmp_path / "train" / "_classes.csv").write_text("Pixel Value, Class\n0, road\n1, car\n2, sky\n")
    options = {"image_dir": "{split}", "mask_dir": "{split}", "classes": "train/_classes.csv"}
    for suffix in ("_mask", "_mask.png"):
        for split in ("valid", "val", "validation"):
            assert load(tmp_path, split, mask_suffix=suffix, **options) == ["a.rf.1", "b.rf.1"]
    with pytest.raises(ValueError, match="mask_suffix says how the masks' names end"):
        load(tmp_path, **options)


@pytest.mark.parametrize("order", ["{kind}/{split}", "{split}/{kind}"])
def test_folders_can_have_any_name(tmp_path, order):
    pairs = []
    for split in ("train", "val"):
        image, mask = (order.format(kind=kind, split=split) for kind in ("img_dir", "ann_dir"))
        pairs.append((f"{image}/{split}.jpg", f"{mask}/{split}.png"))
    write(tmp_path, *pairs)
    assert load(tmp_path, "val", image_dir="img_dir", mask_dir="ann_dir") == ["val"]
    with pytest.raises(ValueError, match="no split 'test'; there are: train, val"):
        load(tmp_path, "test", image_dir="img_dir", mask_dir="ann_dir")
    with pytest.raises(ValueError, match=r"has no split. Expected layout.*or say what lies where"):
        load(tmp_path, image_dir="img")
    with pytest.raises(ValueError, match=r"No folder of masks; looked for .*/anno"):
        load(tmp_path, image_dir="img_dir", mask_dir="anno")


@pytest.mark.parametrize("image_dir", ["{split}", "images"])
def test_the_split_may_stand_anywhere_in_the_folders_names(tmp_path, image_dir):
    images = "images/train" if image_dir == "images" else "train"
    write(tmp_path, (f"{images}/a.png", "trainannot/a.png"))  # SegNet's CamVid
    assert load(tmp_path, image_dir=image_dir, mask_dir="{split}annot") == ["a"]


def test_folders_in_folders_are_read_and_their_endings_cut_off(tmp_path):
    write(
        tmp_path,
        *(
            (f"leftImg8bit/train/{city}/{n}_leftImg8bit.png", f"gtFine/train/{city}/{n}_gtFine_labelIds.png")
            for city in ("here", "there")
            for n in "ab"
        ),
    )
    trees.write_mask(tmp_path / "gtFine/train/here/a_gtFine_instanceIds.png", trees.mask_of([77]))
    options = {"image_dir": "leftImg8bit", "mask_dir": "gtFine", "image_suffix": "_leftImg8bit"}
    names = load(tmp_path, mask_suffix="_gtFine_labelIds.png", **options)
    assert names == ["here/a", "here/b", "there/a", "there/b"]


def test_polygons_in_labels_leave_masks_beside_them_alone(tmp_path):
    """Ultralytics."""
    write(tmp_path, *((f"images/train/{n}.jpg", f"masks/train/{n}.png") for n in "ab"))
    trees.write_list(tmp_path / "labels/train/a.txt", ["0 0.1 0.1 0.2 0.2"])
    assert load(tmp_path) == ["a", "b"]


def test_masks_may_keep_the_suffix_of_their_image(tmp_path):
    """Supervisely."""
    write(tmp_path, *((f"ds0/img/{n}.jpeg", f"ds0/seg/{n}.jpeg.png") for n in "ab"))
    assert load(tmp_path, "ds0", image_dir="img", mask_dir="seg") == ["a", "b"]


def voc_like(root, lists):
    write(root, *((f"JPEGImages/{n}.jpg", f"SegmentationClass/{n}.png") for n in ("a", "b c", "d", "e/f")))
    for name, lines in lists.items():
        trees.write_list(root / "ImageSets/Segmentation" / name, lines)
    return {"image_dir": "JPEGImages", "mask_dir": "SegmentationClass"}


def test_a_list_names_the_images_of_a_split(tmp_path):
    options = voc_like(tmp_path, {"train.txt": ["e/f", "b c", ""], "val.txt": ["d.jpg", "a  1"], "bad.txt": ["a", "x"]})
    options["split_file"] = "ImageSets/Segmentation/{split}.txt"
    assert load(tmp_path, **options) == ["e/f", "b c"]  # in the list's order
    assert load(tmp_path, "validation", **options) == ["d", "a"]
    with pytest.raises(ValueError, match="no split 'test'; there are: bad, train, val"):
        load(tmp_path, "test", **options)
    with pytest.raises(ValueError, match=r"bad.txt: 1 of its lines have no image .or mask.: x"):
        load(tmp_path, "bad", **options)
    with pytest.raises(ValueError, match=r"none.txt is not a file"):
        load(tmp_path, **{**options, "split_file": "none.txt"})
    (tmp_path / "SegmentationClass/a.png").unlink()
    assert load(tmp_path, **options) == ["e/f", "b c"]  # masks of images that are not in the list may miss
    with pytest.raises(ValueError, match="1 of 2 have no mask: a"):
        load(tmp_path, "val", **options)


def test_a_list_of_image_and_mask_paths_needs_no_names_in_common(tmp_path):
    """PaddleSeg, SegNet's CamVid."""
    write(tmp_path, ("images/train/a.jpg", "labels/train/a_label.png"), ("images/train/b.jpg", "labels/train/c.png"))
    trees.write_list(
        tmp_path / "train.txt",
        ["images/train/a.jpg labels/train/a_label.png", "/images/train/b.jpg /labels/train/c.png"],
    )
    assert load(tmp_path, split_file="train.txt") == ["images/train/a", "images/train/b"]


@pytest.mark.parametrize("listed", [False, True])
def test_a_validation_split_is_cut_by_share_and_seed(tmp_path, listed):
    names = [f"{n:02d}" for n in range(20)]
    write(tmp_path, *((f"images/{n}.jpg", f"labels/{n}.png") for n in names))
    trees.write_list(tmp_path / "default.txt", names)
    options = {"validation_share": 0.25} | ({"split_file": "default.txt"} if listed else {})
    train, val = load(tmp_path, "train", **options), load(tmp_path, "validation", **options)
    assert (len(train), len(val)) == (15, 5)
    assert sorted(train + val) == names
    assert load(tmp_path, "val", **options) == val
    others = [load(tmp_path, "val", seed=seed, **options) for seed in range(1, 6)]
    assert any(other != val for other in others)
    assert {name for other in others for name in other} <= set(names)
    with pytest.raises(ValueError, match="no split 'test'; there are: train, val"):
        load(tmp_path, "test", **options)


def test_a_test_split_is_cut_beside_the_validation_split_which_it_does_not_change(tmp_path):
    names = [f"{n:02d}" for n in range(20)]
    write(tmp_path, *((f"images/{n}.jpg", f"masks/{n}.png") for n in names))
    shares = {"validation_share": 0.25, "test_share": 0.1}
    train, val, test = (load(tmp_path, split, **shares) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (13, 5, 2)
    assert sorted(train + val + test) == names
    assert val == load(tmp_path, "val", validation_share=0.25)


@pytest.mark.parametrize(
    ("images", "masks", "names"),
    [
        (("c1.tif", "c2.tif"), ("c1_mask.png", "c2_mask.png"), ["c1", "c2"]),
        (("1_sat.jpg", "2_sat.jpg"), ("1_mask.png", "2_mask.png"), ["1", "2"]),
        (("img-010.jpg", "img-011.jpg"), ("mask-010.png", "mask-011.png"), ["010", "011"]),
        (("t 1.jpg", "t 2.jpg", "t 3.jpg"), ("t 3.seg.png", "t 1.seg.png", "t 2.seg.png"), ["1", "2", "3"]),
    ],
)
def test_names_pair_up_without_the_words_that_all_images_or_all_masks_share(tmp_path, images, masks, names):
    pairs = zip(images, sorted(masks), strict=True)
    write(tmp_path, *((f"train/images/{image}", f"train/masks/{mask}") for image, mask in pairs))
    assert load(tmp_path) == names


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("a01.jpg", "a02.jpg"), ("b11.png", "b12.png")),  # 1 and 2 are no words
        (("cat.jpg", "car.jpg"), ("dot.png", "dor.png")),
        (("a_1.jpg", "a_2.jpg"), ("b_1.png", "b_3.png")),
        (("a_1.jpg",), ("b_1.png",)),  # one tells of no words that all share
    ],
)
def test_names_that_share_nothing_certain_are_not_paired(tmp_path, images, masks):
    pairs = zip(images, masks, strict=True)
    write(tmp_path, *((f"train/images/{image}", f"train/masks/{mask}") for image, mask in pairs))
    with pytest.raises(ValueError, match=r"have no (image|mask)"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_share": 0.2}, "test_share is cut beside validation_share: give both"),
        ({"validation_share": 0.5, "test_share": 0.5}, "test_share must be between 0 and 1 - validation_share .0.5."),
        ({"validation_share": 0.5, "test_share": 0.1}, "validation_share 0.5 and test_share 0.1 of 4 images leave one"),
        ({"validation_share": 1}, "must be between 0 and 1, got 1"),
        ({"validation_share": 0.01}, "leaves one of the two splits empty"),
        ({"validation_share": 0.5, "image_dir": "{split}"}, "image_dir '{split}' names others for each split"),
        ({}, r"or cut the splits from one folder at random.*'\{\"validation_share\": 0.2, \"test_share\": 0.2\}'"),
        ({"image_dir": "nowhere", "validation_share": 0.5}, "nowhere is not a folder; image_dir says where"),
        ({"validation_share": 0.5, "image_suffix": "_rgb"}, r"has no images \*_rgb \(.jpg"),
        ({"validation_share": 0.5, "mask_suffix": "_mask"}, "4 of 4 have no mask: a, b, c, d"),
        (
            {"validation_share": 0.5, "mask_suffix": "_mask", "missing_masks": "void"},
            r"not one of 4 images has a mask \*_mask",
        ),
    ],
)
def test_layouts_that_make_no_sense_are_refused(tmp_path, options, message):
    write(tmp_path, *((f"images/{n}.jpg", f"labels/{n}.png") for n in "abcd"))
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **options)


@pytest.mark.parametrize(("missing", "class_id"), [("sky", 2), ("void", 255)])
def test_images_without_a_mask_file_are_a_class_or_void_on_request(tmp_path, missing, class_id):
    write(tmp_path, ("train/images/a.jpg", "train/labels/a.png"), ("train/images/b.jpg", None))
    with pytest.raises(ValueError, match="1 of 2 have no mask: b"):
        load(tmp_path)
    dataset = load_segmentation_dataset("folder", tmp_path, classes=CLASSES, missing_masks=missing)
    assert np.array_equal(np.asarray(dataset[0]["annotation"]), IDS)
    assert dataset[1]["annotation"].size == dataset[1]["image"].size
    assert set(np.unique(np.asarray(dataset[1]["annotation"]))) == {class_id}
    trees.write_mask(tmp_path / "train/labels/c.png", IDS)
    with pytest.raises(ValueError, match="1 of 3 have no image: c"):
        load_segmentation_dataset("folder", tmp_path, classes=CLASSES, missing_masks=missing)


def test_cityscapes_takes_any_cities_or_none_and_an_empty_tree_is_an_error(tmp_path):
    for city in ("", "atlantis/", "el/dorado/"):
        stem = f"{city.replace('/', '')}x_000000_000019"
        trees.write_image(tmp_path / f"leftImg8bit/train/{city}{stem}_leftImg8bit.png")
        trees.write_mask(tmp_path / f"gtFine/train/{city}{stem}_gtFine_labelIds.png", trees.mask_of([7, 26]))
    dataset = load_segmentation_dataset("cityscapes", tmp_path, "train", check_size=False)
    assert dataset["image_id"][:] == ["atlantisx_000000_000019", "eldoradox_000000_000019", "x_000000_000019"]
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / kind / "val").mkdir()
    with pytest.raises(ValueError, match=r"neither an image nor a mask. Expected layout: leftImg8bit/\{train"):
        load_segmentation_dataset("cityscapes", tmp_path, "val", check_size=False)


def test_ade20k_takes_folders_of_scenes_and_an_empty_tree_is_an_error(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    trees.write_image(root / "images/training/a/abbey/ADE_train_00000001.jpg")
    trees.write_mask(root / "annotations/training/ADE_train_00000001.png", trees.mask_of([0, 1]))
    dataset = load_segmentation_dataset("ade20k", tmp_path, "train", check_size=False)
    assert dataset["image_id"][:] == ["ADE_train_00000001"]
    for kind in ("images", "annotations"):
        (root / kind / "validation").mkdir()
    with pytest.raises(ValueError, match="found neither an image nor a mask"):
        load_segmentation_dataset("ade20k", tmp_path, "val", check_size=False)
