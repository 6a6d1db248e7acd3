import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_networks import tiny_model

from hf_segkd.models import SegKDResNetBackbone
from hf_segkd.models.auto_registration import register_configs, register_image_processors, register_models


@pytest.fixture(autouse=True)
def _registered_twice():
    for register in (register_configs, register_models, register_image_processors) * 2:
        register()


def test_a_backbone_saves_and_loads_alone(tmp_path):
    backbone = tiny_model().backbone
    backbone.save_pretrained(tmp_path)
    again = SegKDResNetBackbone.from_pretrained(tmp_path)
    expected = backbone.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


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
