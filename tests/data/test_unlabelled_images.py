import datasets
import numpy as np
import pytest
import torch
import trees
from PIL import Image
from torch.utils.data import DataLoader

from hf_segkd import load_unlabelled_images
from hf_segkd.data import AugmentedDataset, TrainTransform, load_segmentation_dataset, train_collator, without_labels


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "city/c.jpeg", "city/.hidden.jpg", ".thumbnails/d.jpg"):
        trees.write_image(tmp_path / name, seed=len(name))
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def scenes(num_images, split="train"):
    return load_segmentation_dataset("demo", split=split, num_images=num_images, image_size=(40, 56))


def mixed(labelled=3, unlabelled=4, ratio=1.0, seed=0):
    images = without_labels(scenes(unlabelled, "val"))
    return AugmentedDataset(scenes(labelled), TrainTransform((32, 48)), seed, images, ratio)


def unlabelled_of(dataset, epochs):
    names = []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        names += [dataset[index]["image_ids"] for index in range(len(dataset.dataset), len(dataset))]
    return names


def test_all_images_of_a_folder_and_the_folders_in_it_are_found_and_named_by_their_place(folder):
    images = load_unlabelled_images(folder)
    assert images["image_id"] == ["a.PNG", "b.jpg", "city/c.jpeg"]
    assert images.column_names == ["image", "image_id"]
    assert images[2]["image"].size == (16, 12)


def test_a_missing_or_empty_folder_and_one_with_masks_are_refused(folder, tmp_path):
    (tmp_path / "city" / "labels").mkdir()
    with pytest.raises(ValueError, match=r"city/labels looks like a folder of masks"):
        load_unlabelled_images(folder)
    with pytest.raises(ValueError, match="is not a folder"):
        load_unlabelled_images(tmp_path / "nothing")
    with pytest.raises(ValueError, match="has no images"):
        load_unlabelled_images(tmp_path / "city" / "labels")


def test_a_damaged_image_is_named(folder):
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"b\.jpg: cannot be decoded"):
        load_unlabelled_images(folder)[1]


def test_any_data_set_with_images_will_do_and_masks_are_not_read(tmp_path):
    tree = trees.folder_tree(tmp_path)
    labelled = load_segmentation_dataset("folder", tree, "train", classes=["a", "b", "c"])
    (tree / "train" / "labels" / "scene0.png").write_bytes(b"")
    images = without_labels(labelled)
    assert np.array_equal(images[0]["image"], Image.open(tree / "train" / "images" / "scene0.jpg"))
    hub_like = datasets.Dataset.from_dict({"image": [str(tree / "train" / "images" / "scene1.jpg")], "label": [3]})
    with pytest.raises(ValueError, match=r"column `image` of datasets\.Image"):
        without_labels(hub_like)
    decoded = without_labels(hub_like.cast_column("image", datasets.Image()))
    assert decoded[0]["image_id"] == "image_000000"
    assert np.array_equal(decoded[0]["image"], images[1]["image"])


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 3), (2.0, 6), (0.5, 2), (0.34, 1), (7.0, 21)])
def test_an_epoch_has_so_many_unlabelled_images_for_each_labelled_one(ratio, count):
    dataset = mixed(ratio=ratio)
    assert len(dataset) == 3 + count
    labelled = [bool((sample["labels"] != 255).any()) for sample in (dataset[index] for index in range(len(dataset)))]
    assert labelled == [True] * 3 + [False] * count


def test_the_epochs_go_through_the_unlabelled_images_in_turn_in_new_orders():
    dataset = mixed(labelled=2, unlabelled=6)
    passes = [unlabelled_of(dataset, range(first, first + 3)) for first in (0, 3, 6)]
    assert all(sorted(one) == sorted(dataset.unlabelled["image_id"]) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert passes[0] != unlabelled_of(mixed(labelled=2, unlabelled=6, seed=1), range(3))


def test_an_image_that_comes_twice_in_an_epoch_is_augmented_anew():
    dataset = mixed(labelled=2, unlabelled=1)
    first, second = dataset[2], dataset[3]
    assert first["image_ids"] == second["image_ids"]
    assert not torch.equal(first["pixel_values"], second["pixel_values"])


def test_labelled_samples_are_those_without_unlabelled_images():
    with_them, without = mixed(), AugmentedDataset(scenes(3), TrainTransform((32, 48)), 0)
    for index in range(3):
        assert torch.equal(with_them[index]["pixel_values"], without[index]["pixel_values"])


def test_mixed_samples_are_the_same_with_any_number_of_workers_in_every_epoch():
    def batches(num_workers):
        dataset = mixed(ratio=2.0)
        loader = DataLoader(
            dataset, 2, collate_fn=train_collator, num_workers=num_workers, persistent_workers=num_workers > 0
        )
        for epoch in range(2):
            dataset.set_epoch(epoch)
            yield from loader

    for first, second in zip(batches(0), batches(2), strict=True):
        assert first["image_ids"] == second["image_ids"]
        assert torch.equal(first["pixel_values"], second["pixel_values"])


def test_a_ratio_that_gives_no_image_is_refused():
    with pytest.raises(ValueError, match="an epoch would have no unlabelled image"):
        mixed(ratio=0.1)


def test_pictures_that_are_not_read_are_told_of(folder, caplog):
    (folder / "city" / "d.jp2").write_bytes(b"")
    assert len(load_unlabelled_images(folder)) == 3
    assert f"{folder}: 1 .jp2 are left out." in caplog.text
