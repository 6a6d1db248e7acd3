"""A softmax over one class is always 1: networks of one class are refused, whoever made them."""

import foreign_models
import pytest
from foreign_models import build, no_scipy  # noqa: F401
from tiny_runs import processor, trainer
from transformers import MobileNetV2Config, SegformerConfig

from hf_segkd import DeepLabV3PlusConfig, FeatureNetwork
from hf_segkd.data import LabelInfo
from hf_segkd.networks.loading import load_network, make_student

pytestmark = pytest.mark.usefixtures("no_scipy")
ONE = {"id2label": {0: "crack"}}
MESSAGE = r"has 1 class, and num_labels must be at least 2: .*num_labels=2 \(id2label=\{0: 'background', 1: \.\.\.\}\)"
MODELS = [*foreign_models.DENSE, *(make for make in foreign_models.QUERY if make is not foreign_models.oneformer)]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_models_of_transformers_are_refused_as_student_and_as_teacher(make, tmp_path):
    model = build(make, **ONE)
    with pytest.raises(ValueError, match=MESSAGE):
        trainer(tmp_path, student=model)
    with pytest.raises(ValueError, match=MESSAGE):
        trainer(tmp_path, teacher=model, method="cwd", method_kwargs={"tap": "decoder"})
    with pytest.raises(ValueError, match=MESSAGE):
        FeatureNetwork(model)


def test_folders_and_configs_of_one_class_are_refused_too(tmp_path):
    build(foreign_models.segformer, **ONE).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    for load in (lambda: load_network(str(tmp_path)), lambda: make_student(str(tmp_path), None)):
        with pytest.raises(ValueError, match=MESSAGE):
            load()
    with pytest.raises(ValueError, match=MESSAGE):
        trainer(tmp_path, teacher=str(tmp_path), method="kd")
    with pytest.raises(ValueError, match=MESSAGE):
        make_student(MobileNetV2Config(num_labels=1), None)


@pytest.mark.parametrize("config", [SegformerConfig, DeepLabV3PlusConfig])
def test_a_new_network_for_data_of_one_class_is_refused(config):
    labels = LabelInfo("cracks", ONE["id2label"], [(255, 0, 0)])
    with pytest.raises(ValueError, match=MESSAGE):
        make_student(config(), labels)
