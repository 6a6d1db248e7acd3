"""Data sets from elsewhere are trained on and scored as those of `load_segmentation_dataset`, or refused by name."""

import datasets
import numpy as np
import pytest
import torch
from foreign_rows import PICTURES, TorchPairs, hub_dataset, pairs, tensors_of
from PIL import Image
from tiny_runs import NUM_CLASSES, SIZE, arguments, network, processor, same, scenes, weights
from transformers import SegformerImageProcessor

from hf_segkd.data import AugmentedDataset, label_info, train_collator, without_labels
from hf_segkd.training.trainer import DistillationTrainer


def trainer(folder, train=None, evaluate=None, student=None, **options):
    names = {key: options.pop(key) for key in ("image_column", "mask_column", "unlabelled_dataset") if key in options}
    return DistillationTrainer(
        network() if student is None else student,
        arguments(folder, **options),
        teacher=network(width=12, seed=1) if options.get("method") else None,
        train_dataset=train,
        eval_dataset=evaluate,
        processing_class=processor(),
        **names,
    )


def pictures_of(batch):
    return {"image": batch["image"], "label": batch["label"], "more": [0] * len(batch["image"])}


def matrices():
    images, masks = zip(*pairs(), strict=True)
    classes = datasets.ClassLabel(names=list(network().config.id2label.values()))
    features = {"image": datasets.Image(), "mask": datasets.List(datasets.List(classes))}
    # ClassLabel has -1 for "no label".
    rows = {
        "image": list(images),
        "mask": [np.where(np.asarray(mask) == 255, -1, np.int64(mask)).tolist() for mask in masks],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


FORMS = {
    "SegFormer's tutorial": lambda: hub_dataset("pixel_values", "label"),
    "semantic_segmentation": lambda: hub_dataset("image", "semantic_segmentation", scene_category=list(range(8))),
    "an integer image_id": lambda: hub_dataset("image", "mask", image_id=list(range(8))),
    "webdataset's keys": lambda: hub_dataset("jpg", "mask.png"),
    "format torch": lambda: hub_dataset().with_format("torch"),
    "concatenated": lambda: datasets.concatenate_datasets([hub_dataset(num_images=8).select([0, 1, 2]),
                                                           hub_dataset(num_images=8).select(range(3, 8))]),
    "matrices of class labels": matrices,
    "a transform that gives pictures": lambda: hub_dataset().with_transform(pictures_of),
    "PyTorch's": TorchPairs,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_images_and_masks_are_augmented_and_scored_as_those_of_the_loaders(form, tmp_path):
    dataset = FORMS[form]()
    run = trainer(tmp_path, dataset, dataset)
    expected = trainer(tmp_path, scenes(num_images=8), scenes(num_images=8))
    assert len(run.train_dataset) == 8
    for row, loaded in zip(run.train_dataset, expected.train_dataset, strict=True):
        assert torch.equal(row["pixel_values"], loaded["pixel_values"])
        assert torch.equal(row["labels"], loaded["labels"])
    assert run.evaluate()["eval_mean_iou"] == expected.evaluate()["eval_mean_iou"]
    assert torch.equal(run.confusion_matrix, expected.confusion_matrix)
    assert run.report().num_images == 8


def test_names_of_classes_in_the_features_are_those_of_a_student_without(tmp_path):
    run = trainer(tmp_path, matrices(), student=network(id2label=None, label2id=None, num_labels=NUM_CLASSES))
    assert run.student.config.id2label == network().config.id2label
    with pytest.raises(ValueError, match="calls its classes"):
        trainer(tmp_path, matrices(), student=network(id2label=dict(enumerate("abcd")), label2id=None))


def test_without_names_in_the_features_the_classes_are_those_of_the_network(tmp_path):
    run = trainer(tmp_path, hub_dataset())
    assert label_info(run.train_dataset.dataset).id2label == network().config.id2label
    few = network(id2label=dict(enumerate("ab")), label2id=None)
    with pytest.raises(ValueError, match=r"label out of range: [23].*has 2 classes"):
        trainer(tmp_path, hub_dataset(), student=few)


def test_do_reduce_labels_takes_0_for_no_class_as_in_transformers(tmp_path):
    shifted = [Image.fromarray(np.asarray(mask) + 1) for _, mask in pairs()]
    rows = {"image": [image for image, _ in pairs()], "label": shifted}
    reduces = SegformerImageProcessor(size={"height": SIZE[0], "width": SIZE[1]}, do_reduce_labels=True)
    run = DistillationTrainer(
        network(), arguments(tmp_path), train_dataset=datasets.Dataset.from_dict(rows, features=PICTURES),
        processing_class=reduces,
    )  # fmt: skip
    for row, loaded in zip(run.train_dataset.dataset, scenes(num_images=8), strict=True):
        assert np.array_equal(np.asarray(row["annotation"]), np.asarray(loaded["annotation"]))


def test_columns_are_named_by_the_user_and_ambiguity_and_absence_are_errors(tmp_path):
    odd = hub_dataset("photo", "truth", scene=list(range(8)))
    named = {"image_column": "photo", "mask_column": "truth"}
    run = trainer(tmp_path, odd, unlabelled_dataset=hub_dataset("img"), method="kd", **named)
    assert torch.equal(run.train_dataset[3]["labels"], trainer(tmp_path, hub_dataset()).train_dataset[3]["labels"])
    with pytest.raises(ValueError, match=r"train_dataset: need a column image .* there are: photo \(picture\), truth"):
        trainer(tmp_path, odd)
    with pytest.raises(ValueError, match=r"are the masks in truth\? Name it as mask_column"):
        trainer(tmp_path, odd, image_column="photo")
    with pytest.raises(ValueError, match=r"there is no column 'truht'\. Did you mean 'truth'"):
        trainer(tmp_path, odd, image_column="photo", mask_column="truht")
    with pytest.raises(ValueError, match="mask_column scene holds no pictures"):
        trainer(tmp_path, odd, image_column="photo", mask_column="scene")
    both = hub_dataset().add_column("x", [0] * 8).map(lambda row: {"mask": row["label"]})
    with pytest.raises(ValueError, match="eval_dataset: label and mask could be meant; name one as mask_column"):
        trainer(tmp_path, evaluate=both)
    assert trainer(tmp_path, evaluate=both, mask_column="mask").evaluate()["eval_mean_iou"] > 0


def test_images_alone_train_by_the_teacher_and_are_refused_where_labels_are_needed(tmp_path, caplog):
    images = hub_dataset("img", "label", label_of_photo=list(range(8))).remove_columns("label")
    run = trainer(tmp_path, images, method="cwd")
    assert run.train_dataset[0]["labels"].unique().tolist() == [255]
    told = "train_dataset has no column of masks (img, label_of_photo): images without labels."
    assert [record.message for record in caplog.records] == [told]
    run.train()
    assert all(step["raw_ce"] == 0 for step in run.state.log_history[:-1])
    with pytest.raises(ValueError, match=r"images of train_dataset \(img, label_of_photo\) have no labels"):
        trainer(tmp_path, images)
    with pytest.raises(ValueError, match="no annotations"):
        trainer(tmp_path, evaluate=images)


@pytest.mark.parametrize("own", ["set_transform", "PyTorch's", "columns of numbers"])
def test_tensors_are_used_as_they_are_and_other_entries_dropped(own, tmp_path):
    def transform(batch):
        rows = [tensors_of(*pair) for pair in zip(batch["image"], batch["label"], strict=True)]
        return {key: [row[key] for row in rows] for key in rows[0]}

    if own == "columns of numbers":
        rows = [tensors_of(*pair) for pair in pairs()]
        shape = (3, *SIZE)
        features = datasets.Features(
            {
                "pixel_values": datasets.Array3D(shape, "float32"),
                "labels": datasets.Array2D(SIZE, "int64"),
                "n": datasets.Value("int64"),
            }
        )
        columns = {key: [np.asarray(row[key]) for row in rows] for key in features}
        dataset = datasets.Dataset.from_dict(columns, features=features)  # fmt: skip
    else:
        dataset = hub_dataset().with_transform(transform) if own == "set_transform" else TorchPairs(tensors=True)
    run = trainer(tmp_path, dataset, dataset, max_steps=2, train_sampling_strategy="sequential")
    seen = []
    loss = run.compute_loss
    run.compute_loss = lambda model, inputs, *args, **kwargs: (
        seen.append(inputs) or loss(model, inputs, *args, **kwargs)
    )
    run.train()
    expected = train_collator([tensors_of(*pair) for pair in pairs()[:4]])
    assert set(seen[0]) == {"pixel_values", "labels"}
    assert torch.equal(seen[0]["pixel_values"], expected["pixel_values"])
    assert torch.equal(seen[0]["labels"], expected["labels"])
    run.evaluate()
    assert run.confusion_matrix.sum() == sum((np.asarray(mask) != 255).sum() for _, mask in pairs())


def test_tensors_of_a_wrong_kind_are_errors_with_what_came():
    image, mask = pairs()[0]
    good = tensors_of(image, mask)
    wrong = {
        r"pixel_values are float64 of \(3, 32, 48\), need float32": {"pixel_values": good["pixel_values"].double()},
        r"pixel_values are float32 of \(1, 3, 32, 48\)": {"pixel_values": good["pixel_values"][None]},
        r"pixel_values are float32 of \(32, 48, 3\)": {"pixel_values": good["pixel_values"].permute(1, 2, 0)},
        r"labels are float32 of \(32, 48\), need integers": {"labels": good["labels"].float()},
        r"labels are int64 of \(1, 32, 48\)": {"labels": good["labels"][None]},
        r"labels are 16 x 24 and pixel_values 32 x 48": {"labels": good["labels"][::2, ::2]},
        "has pixel_values and no labels, but mask": {"labels": None, "mask": good["labels"]},
    }
    for message, entries in wrong.items():
        with pytest.raises(ValueError, match=message):
            train_collator([{**good, **entries}], num_labels=4, num_channels=3)
    other = tensors_of(image.resize((24, 16)), mask.resize((24, 16)))
    with pytest.raises(ValueError, match=r"pixel_values are \(3, 16, 24\), and those of another image .*\(3, 32, 48\)"):
        train_collator([good, other])
    with pytest.raises(ValueError, match="rows that are a tuple, and they must be dicts"):
        train_collator([(image, mask)])
    named = train_collator([{"pixel_values": good["pixel_values"].numpy(), "label": good["labels"].numpy()}])
    assert torch.equal(named["labels"][0], good["labels"])


@pytest.mark.parametrize("form", ["columns", "a transform"])
def test_a_mask_that_is_none_is_an_image_without_labels(form, tmp_path):
    rows = hub_dataset().to_list()
    rows[1]["label"] = None
    dataset = datasets.Dataset.from_list(rows, features=PICTURES)
    dataset = dataset if form == "columns" else dataset.with_transform(pictures_of)
    run = trainer(tmp_path, dataset, dataset)
    assert run.train_dataset[1]["labels"].unique().tolist() == [255]
    run.evaluate()
    assert run.confusion_matrix.sum() == sum((np.asarray(m) != 255).sum() for n, (_, m) in enumerate(pairs()) if n != 1)


def test_columns_that_the_format_hides_are_not_read(tmp_path):
    hidden = hub_dataset().with_format("numpy", columns=["image"])
    with pytest.raises(ValueError, match=r"images of train_dataset \(image, label\) have no labels"):
        trainer(tmp_path, hidden)


def test_a_data_set_without_a_length_is_told_what_to_be(tmp_path):
    class Lengthless(torch.utils.data.Dataset):
        def __getitem__(self, index):
            return {}

    with pytest.raises(ValueError, match="train_dataset is a Lengthless without __len__: give it one, or"):
        trainer(tmp_path, Lengthless())
    with pytest.raises(ValueError, match="eval_dataset is empty"):
        trainer(tmp_path, evaluate=hub_dataset().select([]))


def test_the_first_row_is_looked_at_without_drawing_random_numbers(tmp_path):
    class Random(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            np.random.rand()
            return {"pixel_values": torch.rand(3, *SIZE), "labels": torch.zeros(SIZE, dtype=torch.int64)}

    student = network()
    torch.manual_seed(3)
    np.random.seed(3)
    trainer(tmp_path, Random(), student=student, seed=3)
    drawn = torch.rand(1), np.random.rand()
    trainer(tmp_path, student=student, seed=3)  # Trainer seeds all generators
    assert drawn == (torch.rand(1), np.random.rand())


def test_a_data_set_that_lost_its_transform_is_refused_as_before(tmp_path):
    with pytest.raises(ValueError, match="carries no label information"):
        trainer(tmp_path, scenes().with_format(None))


def test_unlabelled_images_come_from_any_data_set(tmp_path):
    for images in (hub_dataset("img", "label"), hub_dataset().with_transform(pictures_of), TorchPairs()):
        run = trainer(tmp_path, scenes(num_images=8), unlabelled_dataset=images, method="kd")
        expected = trainer(
            tmp_path, scenes(num_images=8), unlabelled_dataset=without_labels(scenes(num_images=8)), method="kd"
        )
        assert torch.equal(run.train_dataset[12]["pixel_values"], expected.train_dataset[12]["pixel_values"])
    with pytest.raises(ValueError, match=r"unlabelled_dataset gives tensors \(pixel_values\)"):
        trainer(tmp_path, scenes(), unlabelled_dataset=TorchPairs(tensors=True), method="kd")


@pytest.mark.parametrize("unlabelled", [None, 6])
def test_iterating_the_training_set_ends_after_one_epoch(unlabelled, tmp_path):
    options = {} if unlabelled is None else {"unlabelled_dataset": without_labels(scenes("val", unlabelled))}
    run = trainer(tmp_path, scenes(num_images=5), method="kd", **options)
    assert isinstance(run.train_dataset, AugmentedDataset)
    rows = list(run.train_dataset)
    assert len(rows) == len(run.train_dataset) == (5 if unlabelled is None else 10)
    assert torch.equal(rows[-1]["pixel_values"], run.train_dataset[-1]["pixel_values"])
    with pytest.raises(IndexError):
        run.train_dataset[len(rows)]


def test_a_run_on_images_of_the_hub_resumes_bit_for_bit(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    straight = trainer(tmp_path / "a", hub_dataset().with_transform(pictures_of), **options)
    straight.train()
    resumed = trainer(tmp_path / "a", hub_dataset().with_transform(pictures_of), student=network(seed=9), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert same(weights(resumed.model), weights(straight.model))


def test_that_tensors_are_not_augmented_is_told(tmp_path, caplog):
    trainer(tmp_path, TorchPairs(tensors=True))
    assert [record.message for record in caplog.records] == [
        "train_dataset gives tensors (pixel_values): they are used as they are, without augmentation."
    ]
