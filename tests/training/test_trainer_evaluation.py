import math

import numpy as np
import pytest
import torch
from tiny_runs import arguments, network, processor, scenes, trainer
from transformers import pipeline

from hf_segkd.training.trainer import DistillationTrainer


def test_the_score_is_that_of_the_whole_images_whatever_the_batch_size(tmp_path):
    run = trainer(tmp_path)
    run.train()
    for batch_size in (1, 4):
        other = trainer(tmp_path, student=run.student, per_device_eval_batch_size=batch_size)
        scores = other.evaluate()
        labelled = sum((np.array(row["annotation"]) != 255).sum() for row in scenes("val", 7))
        assert other.confusion_matrix.sum() == labelled  # 7 images in batches of 4: none dropped, none twice
        assert scores["eval_mean_iou"] == pytest.approx(run.evaluate()["eval_mean_iou"], abs=1e-4)


def test_the_pipeline_gives_the_mask_that_evaluation_scores(tmp_path):
    run = trainer(tmp_path)
    run.train()
    run.save_model()
    run.evaluate()
    segment = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
    names = {name: index for index, name in run.student.config.id2label.items()}
    matrix = torch.zeros(4, 4, dtype=torch.int64)
    for row in scenes("val", 7):
        truth = np.array(row["annotation"])
        for piece in segment(row["image"], subtask="semantic"):
            inside = (np.asarray(piece["mask"]) > 0) & (truth != 255)
            matrix[:, names[piece["label"]]] += torch.from_numpy(np.bincount(truth[inside], minlength=4))
    assert matrix.equal(run.confusion_matrix)


def test_images_of_different_sizes_are_evaluated_in_one_batch_with_one_that_nobody_labelled(tmp_path):
    class Mixed(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            size = (32, 32 + 8 * index)
            return {"pixel_values": torch.zeros(3, *size), "labels": torch.full(size, index if index < 3 else 255)}

    run = trainer(tmp_path)
    collator = run.data_collator
    assert math.isfinite(run.evaluate(Mixed())["eval_loss"])
    assert run.confusion_matrix.sum(1).tolist() == [32 * 32, 32 * 40, 32 * 48, 0]
    assert run.data_collator is collator  # training's batches have one size


def test_scale_one_of_training_is_the_scale_of_evaluation(tmp_path):
    large = [(row["image"].resize((480, 320)), row["annotation"].resize((480, 320), 0)) for row in scenes(num_images=1)]
    run = trainer(tmp_path, scale_range=[1.0, 1.0], flip_probability=0.0)
    trained = run.train_dataset.transform(*large[0], np.random.default_rng(0))["pixel_values"]
    evaluated = processor()(images=large[0][0], return_tensors="pt")["pixel_values"][0]
    assert (trained - evaluated).abs().mean() < 0.02


def test_images_are_normalised_in_training_as_in_evaluation(tmp_path):
    plain = processor()
    plain.do_normalize = False
    run = DistillationTrainer(
        network(),
        arguments(tmp_path, scale_range=[1.0, 1.0]),
        train_dataset=scenes(),
        eval_dataset=scenes(),
        processing_class=plain,
    )
    for dataset in (run.train_dataset, run.eval_dataset):
        values = dataset[0]["pixel_values"]
        assert 0 <= values.min() < values.max() <= 1


def test_an_interrupted_evaluation_leaves_no_counts_behind(tmp_path):
    class Interrupted(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            if index == 10:  # of the third batch; the second is loaded before the first is counted
                raise KeyboardInterrupt
            return {"pixel_values": torch.zeros(3, 32, 48), "labels": torch.zeros(32, 48, dtype=torch.int64)}

    run = trainer(tmp_path)
    expected = run.evaluate()["eval_mean_iou"]
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(Interrupted())
    assert run.evaluate()["eval_mean_iou"] == expected


def test_an_evaluation_of_no_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="eval_dataset is empty"):
        trainer(tmp_path).evaluate(scenes("val", 2).select([]))
