import json

import numpy as np
import pytest
import torch
from foreign_models import build, segformer
from PIL import Image
from tiny_commands import OPTIONS, flags
from tiny_runs import SIZE, network, processor, scenes, trainer

from hf_segkd.commands import evaluate, predict, train
from hf_segkd.data import label_info
from hf_segkd.networks import FeatureNetwork
from hf_segkd.networks.loading import load_network

LABELS = {"id2label": label_info(scenes(num_images=1)).id2label}


@pytest.fixture(params=["of hf_segkd", "foreign"])
def half(request, tmp_path):
    """A folder with a network that was saved in float16, which transformers loads as it is."""
    model = network() if request.param == "of hf_segkd" else build(segformer, **LABELS)
    model.half().save_pretrained(tmp_path / "half")
    processor().save_pretrained(tmp_path / "half")
    return str(tmp_path / "half")


def test_a_half_precision_network_is_scored_shown_and_trained_in_float32(half, tmp_path):
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    data = ["--dataset", "demo", "--dataset_options", json.dumps(OPTIONS), "--use_cpu"]
    scores = evaluate.main(["--model", half, *data, "--output", str(tmp_path / "scores.json")])
    assert 0 <= scores.mean_iou <= 1
    written = ["--images", str(tmp_path / "image.png"), "--output", str(tmp_path / "pictures"), "--use_cpu"]
    assert len(predict.main(["--model", half, *written])) == 1
    train.main([*flags(tmp_path / "run", student=half, image_size=None, max_steps=1), "--crop_size", "32", "32"])
    saved, _ = load_network(str(tmp_path / "run"), dtype="auto")
    assert saved.dtype == torch.float32


def test_a_student_that_is_not_float32_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weights are torch.float16.*student.float\(\)"):
        trainer(tmp_path, student=network().half())


def test_images_of_another_number_format_are_not_called_images_of_a_wrong_size():
    teacher = FeatureNetwork(build(segformer, **LABELS).to(torch.bfloat16))
    with pytest.raises(RuntimeError, match="same"):
        teacher(pixel_values=torch.zeros(1, 3, *SIZE))
