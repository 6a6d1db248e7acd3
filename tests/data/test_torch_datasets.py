import numpy as np
import pytest
import torch
import trees
from torch.utils.data import DataLoader
from transformers import SegformerImageProcessor

from hf_segkd.data import (
    AugmentedDataset,
    EvaluationDataset,
    TrainTransform,
    evaluation_collator,
    load_segmentation_dataset,
    train_collator,
)


@pytest.fixture(scope="module")
def scenes():
    return load_segmentation_dataset("demo", num_images=6, image_size=(40, 56))


def augmented(scenes, seed=0):
    return AugmentedDataset(scenes, TrainTransform((32, 48), photometric="jitter"), seed)


def epochs(dataset, num_workers, num_epochs=2):
    """All batches of some epochs, with one loader whose workers live on."""
    loader = DataLoader(
        dataset, 2, collate_fn=train_collator, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    batches = []
    for epoch in range(num_epochs):
        dataset.set_epoch(epoch)
        batches.extend(loader)
    return batches


def test_samples_are_the_same_with_any_number_of_workers_in_every_epoch(scenes):
    alone, with_workers = epochs(augmented(scenes), 0), epochs(augmented(scenes), 2)
    assert len(alone) == len(with_workers) == 6
    for first, second in zip(alone, with_workers, strict=True):
        assert torch.equal(first["pixel_values"], second["pixel_values"])
        assert torch.equal(first["labels"], second["labels"])
    assert not torch.equal(alone[0]["pixel_values"], alone[3]["pixel_values"])


def test_samples_depend_on_seed_epoch_and_index_and_not_on_the_order_of_access(scenes):
    dataset = augmented(scenes)
    dataset.set_epoch(5)
    forward = [dataset[i]["pixel_values"] for i in range(6)]
    torch.manual_seed(1)
    np.random.seed(1)
    backward = [dataset[i]["pixel_values"] for i in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not torch.equal(augmented(scenes, seed=1)[0]["pixel_values"], augmented(scenes)[0]["pixel_values"])


def test_one_image_at_two_indices_is_augmented_differently(scenes):
    twice = augmented(scenes.select([0, 0]))
    assert not torch.equal(twice[0]["pixel_values"], twice[1]["pixel_values"])


def test_the_global_generators_are_not_touched(scenes):
    torch.manual_seed(0)
    np.random.seed(0)
    augmented(scenes)[0]
    drawn = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert drawn == (torch.rand(1).item(), np.random.rand())


def test_a_negative_seed_is_an_error(scenes):
    with pytest.raises(ValueError, match="seed must not be negative"):
        augmented(scenes, seed=-1)


def test_train_batches_hold_tensors_of_the_crop_size_and_the_names_of_their_images(scenes):
    batch = train_collator([augmented(scenes)[i] for i in range(3)])
    assert set(batch) == {"pixel_values", "labels", "image_ids"}
    assert batch["image_ids"] == [scenes[i]["image_id"] for i in range(3)]
    assert (batch["pixel_values"].shape, batch["pixel_values"].dtype) == ((3, 3, 32, 48), torch.float32)
    assert (batch["labels"].shape, batch["labels"].dtype) == ((3, 32, 48), torch.int64)


def test_evaluation_resizes_the_image_and_leaves_the_labels_at_their_own_size(scenes):
    processor = SegformerImageProcessor(size={"height": 16, "width": 24}, do_reduce_labels=True)
    sample = EvaluationDataset(scenes, processor)[1]
    assert sample["pixel_values"].shape == (3, 16, 24)
    assert sample["labels"].dtype == torch.int64
    assert np.array_equal(sample["labels"].numpy(), np.asarray(scenes[1]["annotation"]))
    expected = processor(images=scenes[1]["image"], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(sample["pixel_values"], expected)


def test_evaluation_batches_are_stacked_where_sizes_agree_and_lists_otherwise(tmp_path):
    for index, size in enumerate([(12, 16), (12, 16), (20, 16)]):
        trees.write_image(tmp_path / "val" / "images" / f"{index}.jpg", size)
        trees.write_mask(tmp_path / "val" / "labels" / f"{index}.png", trees.mask_of([0, 1], size))
    photos = load_segmentation_dataset("folder", tmp_path, "val", classes=["off", "on"])
    resized = EvaluationDataset(photos, SegformerImageProcessor(size={"height": 8, "width": 8}))
    batch = evaluation_collator([resized[0], resized[1]])
    assert (batch["pixel_values"].shape, batch["labels"].shape) == ((2, 3, 8, 8), (2, 12, 16))
    batch = evaluation_collator([resized[1], resized[2]])
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert [labels.shape for labels in batch["labels"]] == [(12, 16), (20, 16)]
    whole = EvaluationDataset(photos, SegformerImageProcessor(do_resize=False))
    batch = evaluation_collator([whole[1], whole[2]])
    assert [image.shape for image in batch["pixel_values"]] == [(3, 12, 16), (3, 20, 16)]


@pytest.mark.parametrize("collate", [train_collator, evaluation_collator])
def test_samples_of_which_only_some_have_labels_are_refused(collate):
    image = torch.zeros(3, 2, 2)
    samples = [{"pixel_values": image, "labels": torch.zeros(2, 2).long()}, {"pixel_values": image}]
    for some in (samples, samples[::-1]):
        with pytest.raises(ValueError, match="labels of 255 all over"):
            collate(some)
