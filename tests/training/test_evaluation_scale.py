"""Scale 1 of training is what evaluation sees, or a warning gives both sizes."""

import re

import numpy as np
import pytest
from PIL import Image
from tiny_networks import tiny_model
from transformers import DPTImageProcessor, SegformerImageProcessor

from hf_segkd import DistillationArguments, DistillationTrainer
from hf_segkd.data import load_segmentation_dataset


def processor(size, kind=SegformerImageProcessor, **options):
    return kind(size=size, do_resize=size is not None, do_reduce_labels=False, **options)


def trainer(tmp_path, image_processor, size=(48, 64), **options):
    """Of images of (height, width) that are black, with a white right half of class 1."""
    for index in range(3):
        picture = np.zeros(size, dtype=np.uint8)
        picture[:, size[1] // 2 :] = 1
        for kind, values in (("images", np.repeat(picture[..., None] * 255, 3, axis=2)), ("labels", picture)):
            path = tmp_path / "scenes/train" / kind / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    images = load_segmentation_dataset("folder", tmp_path / "scenes", "train", classes=["dark", "bright"])
    names = {0: "dark", 1: "bright"}
    return DistillationTrainer(
        model=tiny_model(num_labels=2, id2label=names, label2id={name: index for index, name in names.items()}),
        args=DistillationArguments(
            **{
                "output_dir": str(tmp_path),
                "use_cpu": True,
                "crop_size": [64, 64],
                "scale_range": [1.0, 1.0],
                "per_device_train_batch_size": 2,
            }
            | options
        ),
        train_dataset=images,
        eval_dataset=images,
        processing_class=image_processor,
    )


@pytest.mark.parametrize(
    ("size", "kind", "options"),
    [
        (None, SegformerImageProcessor, {}),
        ({"shortest_edge": 24}, SegformerImageProcessor, {}),
        ({"shortest_edge": 33}, SegformerImageProcessor, {}),
        ({"height": 24, "width": 32}, SegformerImageProcessor, {}),
        ({"height": 24, "width": 24}, DPTImageProcessor, {"keep_aspect_ratio": True}),
    ],
    ids=["own size", "short side", "short side, rounded", "of the images' shape", "kept aspect ratio"],
)
def test_an_object_has_as_many_pixels_in_training_as_in_evaluation(size, kind, options, tmp_path, caplog):
    run = trainer(tmp_path, processor(size, kind, **options))
    learnt, scored = run.train_dataset[0], run.eval_dataset[0]["pixel_values"]
    bright = (scored.mean(0) > scored.mean()).sum()
    assert int((learnt["labels"] == 1).sum()) == pytest.approx(int(bright), rel=0.03)
    assert "At scale 1" not in caplog.text


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (
            {"height": 32, "width": 32},
            r"image 0 \(48 x 64\) as 32 x 43, evaluation as 32 x 32 .* scale_base \(now 32\)",
        ),
        ({"shortest_edge": 48, "longest_edge": 32}, r"image 0 \(48 x 64\) as 48 x 64, evaluation as 24 x 32"),
        ({"max_height": 32, "max_width": 32}, r"as 48 x 64, evaluation as 24 x 32 .* scale_base \(now image\)"),
    ],
    ids=["other shape", "capped", "long side"],
)
def test_another_size_is_told_with_both_and_not_for_a_scale_that_was_chosen(size, said, tmp_path, caplog):
    trainer(tmp_path, processor(size))
    (told,) = [record.getMessage() for record in caplog.records if "At scale 1" in record.getMessage()]
    assert re.search(said, told), told
    caplog.clear()
    trainer(tmp_path, processor(size), scale_base=24)
    assert "At scale 1" not in caplog.text
