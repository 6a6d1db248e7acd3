"""Masks in the numbers that the servers of benchmarks take, checked by cityscapesScripts."""

import json
import types

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import tiny_model
from transformers import SegformerImageProcessor

from hf_segkd.commands import evaluate, predict
from hf_segkd.data.ade20k import CLASS_NAMES
from hf_segkd.data.cityscapes import CLASSES
from hf_segkd.data.numberings import NUMBERINGS, official_numbers

STEM = "munster_00000{}_000019"


def save_network(folder, names):
    """One that sees many classes in noise."""
    label2id = {name: index for index, name in enumerate(names)}
    model = tiny_model(id2label=dict(enumerate(names)), label2id=label2id, num_labels=len(names))
    torch.nn.init.normal_(model.classifier.weight, std=10.0)
    model.save_pretrained(folder)
    SegformerImageProcessor(do_resize=False, do_reduce_labels=False).save_pretrained(folder)
    return str(folder)


def save_noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((64, 48)).save(path)


def predicted(network, images, output, *flags):
    command = ["--model", network, "--images", *map(str, images), "--output", str(output), "--use_cpu", "true"]
    predict.main([*command, *flags])
    return [np.asarray(Image.open(output / f"{image.stem}_mask.png")) for image in images]


def test_cityscapes_scripts_give_the_masks_the_score_of_our_evaluation(tmp_path):
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    network = save_network(tmp_path / "student", [name for name, _, _ in CLASSES])
    rng = np.random.default_rng(0)
    images, truths = [], []
    for number in range(3):
        stem = STEM.format(number)
        images.append(tmp_path / f"leftImg8bit/val/munster/{stem}_leftImg8bit.png")
        truths.append(tmp_path / f"gtFine/val/munster/{stem}_gtFine_labelIds.png")
        save_noise(images[-1], number)
    ids = predicted(network, images, tmp_path / "ids")
    for path, mask in zip(truths, ids, strict=True):  # half the truth is what the network sees, half is anything
        label_ids = np.array([label_id for _, label_id, _ in CLASSES], dtype=np.uint8)[mask]
        anything = rng.integers(0, 34, mask.shape, dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(rng.random(mask.shape) < 0.5, label_ids, anything)).save(path)
    predicted(network, images, tmp_path / "official", "--numbering", "cityscapes")
    masks = [str(tmp_path / "official" / f"{image.stem}_mask.png") for image in images]
    settings = types.SimpleNamespace(**{**vars(scripts.CArgs), **vars(scripts.args)})
    settings.evalInstLevelScore, settings.JSONOutput, settings.quiet = False, False, True
    theirs = scripts.evaluateImgLists(masks, [str(path) for path in truths], settings)
    flags = ["--model", network, "--dataset", "cityscapes", "--data_dir", str(tmp_path), "--use_cpu", "true"]
    options = ["--dataset_options", json.dumps({"check_size": False}), "--output", str(tmp_path / "ours.json")]
    ours = evaluate.main([*flags, *options])
    assert len(np.unique(ids)) > 5
    assert 0.05 < ours.mean_iou < 0.95
    assert ours.mean_iou == pytest.approx(theirs["averageScoreClasses"], abs=1e-12)


def test_cityscapes_numbers_are_those_of_cityscapes_scripts():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    assert NUMBERINGS["cityscapes"] == {label.name: label.id for label in labels.labels if 0 <= label.trainId < 255}


def test_ade20k_counts_from_1_whatever_the_order_of_the_classes(tmp_path):
    names = CLASS_NAMES[::-1]
    network = save_network(tmp_path / "student", names)
    save_noise(tmp_path / "a.png", 0)
    (ids,) = predicted(network, [tmp_path / "a.png"], tmp_path / "ids")
    (numbers,) = predicted(network, [tmp_path / "a.png"], tmp_path / "official", "--numbering", "ade20k")
    assert np.array_equal(numbers, 150 - ids)
    assert official_numbers("ade20k", [f"LABEL_{index}" for index in range(150)]).tolist() == [*range(1, 151)]


def test_networks_of_other_classes_and_unknown_numberings_are_refused(tmp_path):
    network = save_network(tmp_path / "student", ["road", "dragon"])
    save_noise(tmp_path / "a.png", 0)
    with pytest.raises(ValueError, match="cityscapes has no number for the class 'dragon'"):
        predicted(network, [tmp_path / "a.png"], tmp_path / "out", "--numbering", "cityscapes")
    with pytest.raises(ValueError, match=r"no numbering 'ade20'. Did you mean 'ade20k'"):
        predicted(network, [tmp_path / "a.png"], tmp_path / "out", "--numbering", "ade20")
