"""Class weights and repeat factors that are counted from the training labels."""

import numpy as np
import pytest
import torch
from resumed_runs import differing, resume
from several_processes import GLOO, spawn
from test_global_batch import assert_same_training, train
from tiny_runs import arguments, network, processor, scenes, trainer

from hf_segkd.data import load_unlabelled_images
from hf_segkd.losses.labels import class_weights
from hf_segkd.training.trainer import DistillationTrainer

BALANCED = {"class_weights": "sqrt", "repeat_threshold": 1.0, "label_loss": "ce,dice"}


def pixels():
    """Pixels of each class in each of the training scenes, counted by hand."""
    masks = [np.array(row["annotation"]) for row in scenes()]
    return np.array([[(mask == c).sum() for c in range(4)] for mask in masks])


def test_weights_are_made_of_the_pixels_of_the_training_masks(tmp_path):
    run = trainer(tmp_path, class_weights="effective", max_steps=1)
    run.train()
    expected = class_weights(pixels().sum(0), "effective")
    assert run.distiller.label_losses.class_weights.tolist() == pytest.approx(expected, rel=1e-6)


def test_images_are_drawn_by_factors_of_the_classes_that_they_show(tmp_path):
    run = trainer(tmp_path, repeat_threshold=1.0, max_steps=1)
    run.train()
    shown = pixels() > 0
    shares = shown.mean(0)
    assert 0 < shares.min() < 1
    expected = [max((1 / shares[c]) ** 0.5 for c in range(4) if image[c]) for image in shown]
    assert run.train_dataset.repeat_factors == pytest.approx(expected)


def test_without_these_arguments_nothing_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_segkd.training.balance.count_classes", None)
    run = trainer(tmp_path, max_steps=1, class_weights=[1, 2, 3, 4])
    run.train()
    assert run.train_dataset.repeat_factors is None


def test_counting_changes_nothing_of_what_training_draws(tmp_path):
    logs = []
    for workers in (0, 2):
        run = trainer(tmp_path, dataloader_num_workers=workers, **BALANCED)
        run.train()
        logs.append([{key: log[key] for key in ("loss", "grad_norm")} for log in run.state.log_history[:-1]])
    assert logs[0] == logs[1]


def test_a_balanced_run_is_resumed_exactly(tmp_path):
    options = {**BALANCED, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}  # 3 steps an epoch
    trainer(tmp_path / "straight", **options).train()
    resume(tmp_path / "resumed", tmp_path / "straight" / "checkpoint-4", **options)
    assert differing(tmp_path / "straight" / "checkpoint-8", tmp_path / "resumed" / "checkpoint-8") == []
    with pytest.raises(ValueError, match=r"trained with repeat_threshold 1\.0, this run has 0\.0"):
        resume(tmp_path / "resumed", tmp_path / "straight" / "checkpoint-4", **{**options, "repeat_threshold": 0.0})


def test_labels_that_can_not_be_counted_are_refused(tmp_path):
    class Crops(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"pixel_values": torch.zeros(3, 32, 48), "labels": torch.zeros(32, 48, dtype=torch.long)}

    run = DistillationTrainer(network(), arguments(tmp_path, class_weights="inverse"), train_dataset=Crops())
    with pytest.raises(
        ValueError, match=r"class_weights 'inverse' is made of the labels .*, and train_dataset is a Crops"
    ):
        run.train()
    scenes(num_images=4)[0]["image"].save(tmp_path / "0.png")
    run = DistillationTrainer(
        network(),
        arguments(tmp_path, method="cwd", repeat_threshold=0.5, per_device_train_batch_size=1),
        teacher=network(width=12, seed=1),
        train_dataset=load_unlabelled_images(tmp_path),
        processing_class=processor(),
    )
    with pytest.raises(ValueError, match=r"repeat_threshold 0\.5 is made of .* is one without labels"):
        run.train()


def job_of_two(rank, folder):
    for name, options in TWO.items():
        torch.save(train(folder, "kd", 3, 1, **options, **GLOO), folder / f"{name}-{rank}.pt")


TWO = {
    "counted": {"class_weights": "inverse", "label_smoothing_factor": 0.1, "repeat_threshold": 1.0},
    "focal": {"label_loss": "focal", "class_weights": [1, 5, 0.2, 3]},
}


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path):
    folder = spawn(2, tmp_path, job_of_two)
    for name, options in TWO.items():
        both = [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)]
        alone = train(folder, "kd", 6, 1, **options)
        assert_same_training(alone, {**both[0], "log": alone["log"]})
        assert_same_training(both[0], {**both[1], "log": both[0]["log"]})
        assert [log["raw_kd"] for log in both[0]["log"]] == pytest.approx(
            [log["raw_kd"] for log in alone["log"]], rel=1e-4
        )
