import logging

import numpy as np
import pytest
import torch
import trees
from PIL import Image
from torch.utils.data import DataLoader

from hf_segkd.data import (
    AugmentedDataset,
    TrainTransform,
    check_dataset,
    evaluation_collator,
    load_segmentation_dataset,
    load_unlabelled_images,
    train_collator,
)


@pytest.fixture
def tree(tmp_path):
    """Six images, of which `image 2` is damaged."""
    for index in range(6):
        trees.write_image(tmp_path / "train" / "images" / f"{index}.jpg", seed=index)
        trees.write_mask(tmp_path / "train" / "labels" / f"{index}.png", trees.mask_of([0, 1, 255]))
    damage(tmp_path / "train" / "images" / "2.jpg")
    return tmp_path


def damage(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def load(tree):
    return load_segmentation_dataset("folder", tree, "train", classes=["off", "on"])


def augmented(tree, bad_images="skip", **options):
    return AugmentedDataset(load(tree), TrainTransform((8, 8)), bad_images=bad_images, **options)


def batches(dataset, num_workers):
    return DataLoader(dataset, 2, collate_fn=train_collator, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_stops_with_its_name_and_the_way_to_go_on(tree, num_workers):
    with pytest.raises(ValueError, match=r"2\.jpg: cannot be decoded, .*bad_images='skip' trains without"):
        list(batches(augmented(tree, "stop"), num_workers))


def test_skipping_takes_the_next_image_and_the_main_process_learns_of_it_whatever_the_number_of_workers(tree):
    damage(tree / "train" / "labels" / "3.png")
    runs = []
    for num_workers in (0, 2):
        dataset = augmented(tree)
        runs.append(list(batches(dataset, num_workers)))
        assert dataset.unreadable.tolist() == [False, False, True, True, False, False]
    assert [name for batch in runs[0] for name in batch["image_ids"]] == ["0", "1", "4", "4", "4", "5"]
    for first, second in zip(*runs, strict=True):
        assert first["image_ids"] == second["image_ids"]
        assert torch.equal(first["pixel_values"], second["pixel_values"])
    pixels = runs[0][1]["pixel_values"]
    assert not torch.equal(pixels[0], pixels[1])  # 4 in the place of 2 and of 3: each with its own augmentation


def test_the_last_image_gives_way_to_the_first_and_each_bad_file_is_named_once(tree, caplog):
    damage(tree / "train" / "images" / "5.jpg")
    dataset = augmented(tree)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert dataset[5]["image_ids"] == "0"
            assert dataset[2]["image_ids"] == "3"
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["Left out of training"] * 2
    assert "5.jpg: cannot be decoded" in caplog.text
    assert "2.jpg: cannot be decoded" in caplog.text


def test_unlabelled_images_are_skipped_among_themselves(tree, tmp_path):
    for index in range(3):
        trees.write_image(tmp_path / "more" / f"{index}.jpg", seed=index)
    damage(tmp_path / "more" / "1.jpg")
    dataset = augmented(tree, unlabelled=load_unlabelled_images(tmp_path / "more"), unlabelled_ratio=0.5)
    names = [dataset[index]["image_ids"] for index in range(len(dataset))]
    assert sorted(names[6:]) in (["0.jpg", "0.jpg", "2.jpg"], ["0.jpg", "2.jpg", "2.jpg"])
    assert [dataset.name_of(place) for place in dataset.unreadable.nonzero().flatten().tolist()] == ["2", "1.jpg"]


def test_when_no_image_is_left_it_stops(tree):
    for file in (tree / "train" / "images").iterdir():
        damage(file)
    with pytest.raises(ValueError, match="None of 6 images can be read"):
        augmented(tree)[0]


def test_labels_out_of_range_and_masks_of_another_size_are_never_skipped(tree):
    Image.fromarray(trees.mask_of([0, 33])).save(tree / "train" / "labels" / "4.png")
    Image.fromarray(trees.mask_of([0], (5, 5))).save(tree / "train" / "labels" / "1.png")
    dataset = augmented(tree)
    with pytest.raises(ValueError, match=r"4\.png: label out of range: 33; folder has 2 classes"):
        dataset[4]
    with pytest.raises(ValueError, match=r"1\.jpg is 16 x 12 pixels but its mask .*1\.png is 5 x 5"):
        dataset[1]


def test_the_check_before_training_goes_over_bad_images_only_when_they_are_skipped(tree, tmp_path):
    check_dataset(load(tree), bad_images="skip")
    with pytest.raises(ValueError, match=r"2\.jpg"):
        check_dataset(load(tree))
    with pytest.raises(ValueError, match=r"2\.jpg"):
        check_dataset(load_unlabelled_images(tmp_path / "train" / "images"))


@pytest.mark.parametrize("collate", [train_collator, evaluation_collator])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_labels_of_any_data_set_are_checked_before_they_reach_a_device(collate, dtype):
    labels = torch.from_numpy(np.array([[0, 18], [255, 18]])).to(dtype)
    good = {"pixel_values": torch.zeros(3, 2, 2), "labels": labels, "image_ids": "aachen"}
    assert collate([good], num_labels=19)["labels"].dtype == dtype
    bad = {**good, "labels": labels + 1, "image_ids": "zurich"}  # 255 becomes 0, or 256
    with pytest.raises(ValueError, match=r"zurich: label out of range: 19; the network has 19 classes, .*labelIds"):
        collate([good, bad], num_labels=19)
    del bad["image_ids"]
    with pytest.raises(ValueError, match=r"An image .its data set gives no image_ids.: label out of range"):
        collate([bad], num_labels=19)
    with pytest.raises(ValueError, match="label out of range: 255"):
        collate([good], num_labels=19, ignore_index=0)
