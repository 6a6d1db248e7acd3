from itertools import pairwise

import numpy as np
import pytest

from hf_segkd.data import check_dataset, label_info, load_segmentation_dataset
from hf_segkd.data.demo import MAX_NUM_CLASSES, class_appearance


def pixels(dataset):
    return [(np.asarray(row["image"]), np.asarray(row["annotation"])) for row in dataset]


def same(first, second):
    return all(np.array_equal(a, b) and np.array_equal(c, d) for (a, c), (b, d) in zip(first, second, strict=True))


def test_scenes_depend_on_seed_split_and_index_alone():
    few = pixels(load_segmentation_dataset("demo", num_images=3))
    more = pixels(load_segmentation_dataset("demo", num_images=5))
    assert same(few, more[:3])
    assert not np.array_equal(more[0][0], more[1][0])
    for other in ({"split": "val"}, {"seed": 1}):
        assert not np.array_equal(few[0][0], pixels(load_segmentation_dataset("demo", num_images=1, **other))[0][0])


def test_size_and_number_of_classes_are_those_asked_for():
    dataset = load_segmentation_dataset("demo", split="validation", num_images=60, image_size=(48, 80), num_classes=4)
    check_dataset(dataset)
    assert dataset[0]["image"].size == dataset[0]["annotation"].size == (80, 48)
    labels = np.stack([np.asarray(row["annotation"]) for row in dataset])
    assert set(np.unique(labels)) == {0, 1, 2, 3, 255}
    assert label_info(dataset).id2label[0] == "background"
    assert label_info(dataset).num_labels == 4
    assert dataset["image_id"][59] == "val_00059"


def test_every_class_is_common_and_outlines_are_ignored():
    labels = np.stack([labels for _, labels in pixels(load_segmentation_dataset("demo", num_images=80))])
    shares = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert (shares[1:6] > 0.015).all()
    assert 0.5 < shares[0] < 0.85
    assert 0.01 < shares[255] < 0.06
    # A pixel and its right neighbour never belong to two classes without an outline between them.
    left, right = labels[..., :-1], labels[..., 1:]
    assert ((left == right) | (left == 255) | (right == 255)).all()


def test_the_colour_alone_does_not_tell_the_class():
    """The best guess from a coarse colour histogram, fitted on the same pixels, stays far from right."""
    dataset = load_segmentation_dataset("demo", num_images=80)
    image, labels = (
        np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])
        for parts in zip(*pixels(dataset), strict=True)
    )
    objects = (labels > 0) & (labels < 255)
    colour = (image[objects] // 32).astype(int) @ (64, 8, 1)
    counts = np.zeros((512, 6), dtype=int)
    np.add.at(counts, (colour, labels[objects]), 1)
    assert counts.max(axis=1).sum() / counts.sum() < 0.6


def test_no_two_classes_look_alike_and_neighbours_share_shape_or_texture():
    looks = [class_appearance(class_id) for class_id in range(1, MAX_NUM_CLASSES)]
    assert len(set(looks)) == len(looks) == 36
    for first, second in pairwise(looks[:12]):
        assert (first[0] == second[0]) != (first[1] == second[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be 2..37"),
        ({"num_classes": 38}, "num_classes must be 2..37"),
        ({"num_images": 0}, "num_images >= 1"),
        ({"image_size": (8, 64)}, "image_size >="),
        ({"seed": -1}, "seed >= 0"),
        ({"data_dir": "here"}, "data_dir must be None"),
        ({"hub_id": "user/demo"}, "not for the demo set"),
        ({"split": "trainval"}, "there are: train, val, test"),
    ],
)
def test_bad_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        load_segmentation_dataset("demo", **options)


def test_a_data_set_knows_its_split():
    assert str(load_segmentation_dataset("demo", split="val", num_images=1).split) == "val"
