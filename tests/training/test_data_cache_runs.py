"""Runs whose images are kept decoded on disk train the same student bit for bit."""

import logging

import pytest
import torch
from tiny_runs import NUM_CLASSES, SIZE, StopAfter, arguments, network, processor, same, scenes, weights

from hf_segkd.data import AugmentedDataset, TrainTransform, load_segmentation_dataset, without_labels
from hf_segkd.training.trainer import DistillationTrainer


def trainer(folder, cache, train_dataset=None, unlabelled=None, **overrides):
    return DistillationTrainer(
        model=network(),
        args=arguments(folder, data_cache=None if cache is None else str(cache), **overrides),
        teacher=network(width=12, seed=1),
        train_dataset=scenes() if train_dataset is None else train_dataset,
        unlabelled_dataset=unlabelled,
        processing_class=processor(),
    )


def photos():
    return without_labels(
        load_segmentation_dataset("demo", split="val", num_images=5, image_size=SIZE, num_classes=NUM_CLASSES)
    )


def test_students_with_and_without_the_cache_are_the_same_also_after_a_resume(tmp_path):
    options = {"method": "cwd", "max_steps": 6, "save_steps": 4}
    plain = trainer(tmp_path / "plain", None, unlabelled=photos(), **options)
    plain.train()
    cache = tmp_path / "cache"
    stopped = trainer(tmp_path / "cached", cache, unlabelled=photos(), save_strategy="steps", **options)
    stopped.add_callback(StopAfter(4))
    stopped.train()
    resumed = trainer(tmp_path / "cached", cache, unlabelled=photos(), save_strategy="steps", **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(plain.student), weights(resumed.student))
    assert len(list(cache.glob("*/*.raw"))) == 12 + 12 + 5


def test_the_room_is_told_before_the_first_step_and_a_limit_stops_the_run(tmp_path, caplog):
    run = trainer(tmp_path, tmp_path / "cache", method="kd", max_steps=1, data_cache_limit=1.0)
    with caplog.at_level(logging.WARNING):
        run.train()
    assert f"{12 * 32 * 48 * 5 / 2**30:.3g} GiB in the data cache" in caplog.text
    run = trainer(tmp_path, tmp_path / "another", method="kd", data_cache_limit=1e-5)
    with pytest.raises(ValueError, match=r"data_cache_limit is 1e-05 GiB\. Leave data_cache out"):
        run.train()
    assert run.state.global_step == 0
    assert not list((tmp_path / "another").glob("*/*"))


def test_a_data_set_that_reads_its_own_images_is_refused_by_name(tmp_path):
    own = [{"pixel_values": torch.zeros(3, *SIZE), "labels": torch.zeros(SIZE, dtype=torch.int64)}] * 4
    with pytest.raises(ValueError, match=r"data_cache is for .* \(list\) gives tensors\. Leave it out"):
        trainer(tmp_path, tmp_path / "cache", train_dataset=own, method="kd")
    with pytest.raises(ValueError, match=r"data_cache is for .* \(AugmentedDataset\) gives tensors"):
        trainer(tmp_path, tmp_path / "cache", AugmentedDataset(scenes(), TrainTransform(SIZE)), method="kd")
    augmented = AugmentedDataset(scenes(), TrainTransform(SIZE), data_cache=tmp_path / "cache")
    run = trainer(tmp_path, None, augmented, method="kd", max_steps=3, data_cache_limit=1e-5)
    with pytest.raises(ValueError, match="data_cache_limit is 1e-05 GiB"):
        run.train()
