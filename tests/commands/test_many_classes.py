"""More than 255 classes, as ADE20K-full (847) and Pascal Context (459) have: 16 bits from the file to the score."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_commands import STUDENT, flags
from tiny_networks import tiny_model
from transformers import SegformerImageProcessor

from hf_segkd import DistillationArguments, DistillationTrainer, MeanIoU
from hf_segkd.commands import evaluate, predict, train
from hf_segkd.data import AugmentedDataset, TrainTransform, check_dataset, label_info, load_segmentation_dataset

NAMES = [f"class {number}" for number in range(300)]


@pytest.fixture
def scenes(tmp_path):
    """Images of two halves, class 270 dark and class 299 bright, with a border of no class."""
    for split, number in (("train", 6), ("val", 3)):
        for index in range(number):
            mask = np.full((32, 48), 270, dtype=np.uint16)
            mask[:, 16 + 4 * index :] = 299
            image = np.repeat(np.where(mask == 299, 220, 30).astype(np.uint8)[..., None], 3, axis=2)
            mask[0] = 65535
            for kind, picture in (("images", image), ("labels", mask)):
                path = tmp_path / "scenes" / split / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return tmp_path / "scenes"


def test_masks_keep_their_16_bits_through_decoding_augmentation_and_the_account(scenes):
    dataset = load_segmentation_dataset("folder", scenes, classes=NAMES)
    mask = np.asarray(dataset[0]["annotation"])
    assert np.unique(mask).tolist() == [270, 299, 65535]
    assert label_info(dataset).ignore_index == 65535
    assert len(set(label_info(dataset).palette)) == 300
    account = check_dataset(dataset)
    assert (account.pixels[270], account.no_class) == (6 * 31 * 16 + 4 * 31 * sum(range(6)), 6 * 48)
    transform = TrainTransform((32, 64), (1.0, 1.0), flip_probability=0, ignore_index=65535, max_class_share=0.9)
    labels = AugmentedDataset(dataset, transform)[0]["labels"]
    assert torch.equal(labels[:, :48], torch.from_numpy(mask.astype(np.int64)))
    assert labels[:, 48:].unique().tolist() == [65535]


def test_one_image_of_one_class_does_not_prevail_by_its_pixels_without_a_class():
    transform = TrainTransform((8, 8), (1.0, 1.0), ignore_index=65535, max_class_share=0.6)
    labels = np.full((8, 8), 65535, dtype=np.uint16)
    labels[0, :2] = [256, 299]
    assert not transform._one_class_prevails(Image.fromarray(labels))
    labels[0, 1] = 256
    assert transform._one_class_prevails(Image.fromarray(labels))


def test_a_student_learns_is_scored_and_predicts_more_than_255_classes(scenes, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    data = {"dataset": "folder", "data_dir": str(scenes), "dataset_options": {"classes": str(tmp_path / "names.txt")}}
    settings = {"student_config": STUDENT, "learning_rate": 0.02, "max_steps": 12, "crop_size": [32, 32]}
    report = train.main(flags(tmp_path / "run", **data, image_size=None, **settings, scale_range=[1.0, 1.0]))
    assert report.overall_accuracy > 0.75  # 0.58 with one class; processors round twelve steps differently
    assert report.classes["class 299"]["iou"] > 0.65
    assert report.label_account["train"]["pixels"]["class 299"] > 0
    assert json.loads((tmp_path / "run/config.json").read_text())["semantic_loss_ignore_index"] == 65535
    options = ["--dataset_options", json.dumps(data["dataset_options"]), "--output", str(tmp_path / "score.json")]
    command = ["--model", str(tmp_path / "run"), "--dataset", "folder", "--data_dir", str(scenes), "--use_cpu", "true"]
    assert evaluate.main([*command, *options]).confusion_matrix == report.confusion_matrix
    images = str(scenes / "val/images")
    predict.main(["--model", str(tmp_path / "run"), "--images", images, "--output", str(tmp_path / "out"), "--use_cpu"])
    metric = MeanIoU(300, ignore_index=65535)
    for index in range(3):
        predicted = np.array(Image.open(tmp_path / f"out/{index}_mask.png"))
        assert predicted.max() > 255
        metric.update(
            predicted.astype(np.int64), np.array(Image.open(scenes / f"val/labels/{index}.png")).astype(np.int64)
        )
    assert metric.confusion_matrix.tolist() == report.confusion_matrix


def test_a_network_that_leaves_out_another_label_is_refused(scenes, tmp_path):
    model = tiny_model(id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}, num_labels=300)
    with pytest.raises(ValueError, match=r"have the label 65535, and the network leaves out 255, a class. Set"):
        DistillationTrainer(
            model=model,
            args=DistillationArguments(output_dir=str(tmp_path), use_cpu=True, crop_size=[32, 32]),
            train_dataset=load_segmentation_dataset("folder", scenes, classes=NAMES),
            processing_class=SegformerImageProcessor(do_resize=False, do_reduce_labels=False),
        )
