import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import tiny_model
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

from hf_segkd.models import DeepLabV3PlusForSemanticSegmentation, SegKDResNetBackbone
from hf_segkd.models.auto_registration import register_configs, register_image_processors, register_models


@pytest.fixture(autouse=True)
def _registered_twice():
    for register in (register_configs, register_models, register_image_processors) * 2:
        register()


@pytest.fixture
def saved(tmp_path):
    model = tiny_model(id2label={i: f"class {i}" for i in range(5)})
    model.save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 64, "width": 80}).save_pretrained(tmp_path)
    return tmp_path


def test_auto_classes_load_what_was_saved(saved):
    config = AutoConfig.from_pretrained(saved)
    model = AutoModelForSemanticSegmentation.from_pretrained(saved)
    assert type(model) is DeepLabV3PlusForSemanticSegmentation
    assert type(AutoBackbone.from_config(config.backbone_config)) is SegKDResNetBackbone
    assert type(AutoImageProcessor.from_pretrained(saved)) is SegformerImageProcessor


def test_a_backbone_saves_and_loads_alone(tmp_path):
    backbone = tiny_model().backbone
    backbone.save_pretrained(tmp_path)
    again = SegKDResNetBackbone.from_pretrained(tmp_path)
    expected = backbone.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_the_pipeline_gives_the_models_own_mask_without_a_complaint(saved, capfd):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    segment = pipeline("image-segmentation", model=str(saved))
    pieces = segment(Image.fromarray(pixels), subtask="semantic")
    assert "is not supported" not in capfd.readouterr().err
    model = AutoModelForSemanticSegmentation.from_pretrained(saved).eval()
    inputs = AutoImageProcessor.from_pretrained(saved)(Image.fromarray(pixels), return_tensors="pt")
    with torch.inference_mode():
        mask = model(**inputs).logits[0].argmax(0).numpy()
    assert {piece["label"] for piece in pieces} == {f"class {i}" for i in np.unique(mask)}
    for piece in pieces:
        assert np.array_equal(np.asarray(piece["mask"]) > 0, mask == int(piece["label"].split()[1]))


IMPORT_ORDERS = {
    "package_first": "from hf_segkd.models import DeepLabV3PlusConfig; import transformers",
    "model_class_first": "from hf_segkd.models import DeepLabV3PlusForSemanticSegmentation",
    "base_class_first": "from transformers import PreTrainedModel; from hf_segkd.models import SegKDResNetBackbone",
    "auto_classes_first": "from transformers import AutoModelForSemanticSegmentation; import hf_segkd.models",
    "module_first": "import hf_segkd.models.modeling_deeplabv3plus",
}


@pytest.mark.slow
@pytest.mark.parametrize("statement", IMPORT_ORDERS.values(), ids=IMPORT_ORDERS)
def test_every_order_of_imports_works(statement):
    check = "; from transformers import AutoConfig; import hf_segkd.models.auto_registration as r; r.register_configs()"
    check += "; assert AutoConfig.for_model('segkd-deeplabv3plus').backbone == 'resnet18'"
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", statement + check], check=True, env={**os.environ, "PYTHONPATH": root})


@pytest.mark.slow
def test_saved_code_loads_where_the_package_is_not_installed(tmp_path):
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from tiny_networks import tiny_model
from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
import torch
DeepLabV3PlusConfig.register_for_auto_class()
DeepLabV3PlusForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
model = tiny_model("mobilenet_v2")
model.save_pretrained(sys.argv[1])
torch.save(model(torch.ones(1, 3, 64, 64)).logits.detach(), sys.argv[1] + "/expected.pt")
"""
    model_dir, here = str(tmp_path / "model"), str(Path(__file__).parent)
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", script, model_dir, here], check=True, env={**os.environ, "PYTHONPATH": root})
    load = """
import sys, torch
sys.modules["hf_segkd"] = None  # any import of it fails now, installed or not
from transformers import AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert torch.equal(model(torch.ones(1, 3, 64, 64)).logits, torch.load(sys.argv[1] + "/expected.pt"))
"""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["HF_HOME"] = str(tmp_path / "home")
    subprocess.run([sys.executable, "-c", load, model_dir], env=env, cwd=tmp_path, check=True)
