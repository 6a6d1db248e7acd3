"""What is of another kind than an argument takes is refused by name."""

import datasets
import pytest
import torch
from foreign_rows import hub_dataset, pairs
from tiny_runs import arguments, network, processor
from torchvision.transforms import ToTensor
from transformers import TrainingArguments

from hf_segkd.training.trainer import DistillationTrainer

UNCAST_MASKS = hub_dataset().select_columns(["image"]).add_column("mask", ["2.png"] * 8)
PATHS = datasets.Dataset.from_dict({"image": ["1.png"], "label": ["2.png"]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_dataset": "me/scenes"}, "train_dataset is the name 'me/scenes', and must be what is loaded by it"),
        ({"train_dataset": torch.utils.data.DataLoader(pairs())}, "is a DataLoader, .* pass its data set"),
        ({"train_dataset": PATHS}, r"dataset.cast_column\('image', datasets.Image\(\)\) makes pictures"),
        (
            {
                "train_dataset": hub_dataset()
                .select_columns(["image"])
                .add_column("mask", ["2.png"] * len(hub_dataset()))
            },
            r"mask sounds like masks, and holds no pictures. Cast .* cast_column\('mask', datasets.Image\(\)\)",
        ),
        ({"train_dataset": {"train": hub_dataset()}}, "train_dataset holds the splits train"),
        ({"eval_dataset": {}}, "eval_dataset is a dict, .* is empty"),
        ({"eval_dataset": {"a": None}}, "eval_dataset is a dict, .* 'a' is none, or has none"),
        ({"eval_dataset": {0: hub_dataset()}}, "eval_dataset is a dict, of names"),
        ({"processing_class": ToTensor()}, "processing_class is a ToTensor, and must be an image processor"),
        ({"callbacks": 1}, "callbacks is a int, and must be a list"),
        ({"callbacks": [1]}, "callbacks holds a int"),
    ],
)
def test_arguments_of_the_trainer(given, message, tmp_path):
    usual = {"train_dataset": hub_dataset(), "processing_class": processor()}
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(network(), arguments(tmp_path), **{**usual, **given})


def test_arguments_of_training(tmp_path):
    for given, message in {
        "crop_size": (32, "crop_size takes height and width in pixels, got 32"),
        "learning_rate": ("1e-3", "learning_rate must be a number from 0, got '1e-3'"),
        "frozen": ("backbone", "frozen takes a list of beginnings"),
    }.items():
        with pytest.raises(ValueError, match=message[1]):
            arguments(tmp_path, **{given: message[0]})
    with pytest.raises(ValueError, match="args is a TrainingArguments, and must be DistillationArguments"):
        DistillationTrainer(network(), TrainingArguments(str(tmp_path), use_cpu=True))


def test_evaluation_sets_of_another_name_and_splits_to_predict(tmp_path):
    def run(images):
        return DistillationTrainer(
            network(), arguments(tmp_path), eval_dataset=images, processing_class=processor()
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"no evaluation set 'nigth'\. Did you mean 'night'"):
        run({"night": hub_dataset()}).evaluate("nigth")
    with pytest.raises(ValueError, match="'night' names one of several evaluation sets"):
        run(hub_dataset()).evaluate("night")
    with pytest.raises(ValueError, match="test_dataset holds the splits night"):
        run(hub_dataset()).predict(datasets.DatasetDict(night=hub_dataset()))
