"""A set without one labelled pixel is refused wherever its labels come from; labels that miss classes are told."""

import numpy as np
import pytest
import torch
from foreign_rows import hub_dataset, pairs
from PIL import Image
from tiny_runs import SIZE, arguments, network, processor

from hf_segkd.training.trainer import DistillationTrainer


def trainer(folder, train=None, evaluate=None, **options):
    return DistillationTrainer(
        network(), arguments(folder, **options), teacher=network(width=12, seed=1) if "method" in options else None,
        train_dataset=train, eval_dataset=evaluate, processing_class=processor(),
    )  # fmt: skip


def tensors(change):
    return [
        {"pixel_values": torch.zeros(3, *SIZE), "labels": torch.from_numpy(change(np.array(mask))).long()}
        for _, mask in pairs()
    ]


def void(mask):
    return np.full_like(mask, 255)


def stream_of(change):
    rows = hub_dataset().map(lambda row: {"label": Image.fromarray(change(np.asarray(row["label"])))})
    return rows.to_iterable_dataset()


@pytest.mark.parametrize("make", [tensors, stream_of])
def test_images_without_one_labelled_pixel_are_neither_scored_nor_learnt_from(make, tmp_path, caplog):
    with pytest.raises(ValueError, match="has no score: not one pixel of its images has a class"):
        trainer(tmp_path, evaluate=make(void)).evaluate()
    run = trainer(tmp_path, make(void), max_steps=1)
    with pytest.raises(ValueError, match="not one pixel of the images of this run has a class"):
        run.train()
    # A run that is under way goes on, and the teacher teaches without labels.
    trainer(tmp_path, make(lambda mask: mask), make(void), max_steps=1, eval_strategy="steps", eval_steps=1).train()
    assert caplog.text.count("The evaluation has no score") == 1
    assert trainer(tmp_path, make(void), max_steps=1, method="kd").train().training_loss > 0


def test_a_single_labelled_pixel_is_enough(tmp_path):
    def nearly(mask):
        labels = void(mask)
        labels[0, 0] = 1
        return labels

    run = trainer(tmp_path, tensors(nearly), tensors(nearly), max_steps=1)
    run.train()
    run.evaluate()
    assert run.confusion_matrix.sum() == run.confusion_matrix[1].sum() == 8


def test_tensors_of_0_and_255_are_told_once(tmp_path, caplog):
    def binary(mask):
        return np.where(mask == 1, np.uint8(255), np.uint8(0))

    trainer(tmp_path, tensors(binary), max_steps=4).train()
    told = [record.message for record in caplog.records if "labelled pixels" in record.message]
    assert told == [
        "train_dataset, the first 8 masks: All labelled pixels are 'background'. Do the other classes have other "
        "numbers than 0 to k - 1?"
    ]
    caplog.clear()
    trainer(tmp_path, tensors(lambda mask: mask), max_steps=4).train()
    assert "masks" not in caplog.text
