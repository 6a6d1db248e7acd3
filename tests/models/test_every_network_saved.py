"""What of every network lies in a folder, and who loads it."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from network_cases import CASES, PIXELS, every_network
from PIL import Image
from tiny_networks import fill_weights, tiny_hrnet
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from hf_segkd.models import (
    DeepLabV3PlusConfig,
    DeepLabV3PlusForSemanticSegmentation,
    HRNetConfig,
    HRNetForSemanticSegmentation,
    ISANetConfig,
    PSPNetConfig,
    PSPNetForSemanticSegmentation,
)
from hf_segkd.models.configuration_backbones import geometry
from hf_segkd.publishing.publication import save_network


@every_network
def test_save_and_load_gives_identical_bits_through_the_auto_classes_without_a_connection(case, tmp_path, monkeypatch):
    model = case.build()
    fill_weights(model)
    model.save_pretrained(tmp_path)
    SegformerImageProcessor().save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.config)
    assert geometry(config.backbone_config) == geometry(model.config.backbone_config)
    without = {"transformers_version": None, "_name_or_path": None, "architectures": None, "dtype": None}
    assert {**config.to_dict(), **without} == {**model.config.to_dict(), **without}
    assert type(AutoBackbone.from_config(config.backbone_config)) is type(model.backbone)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SegformerImageProcessor
    assert MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config.model_type] == type(model).__name__
    for options in ({}, {"device_map": "cpu"}, {"device_map": "auto"}):
        again, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True, **options)
        assert type(again) is type(model)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.inference_mode():
            # Not to the bit: oneDNN chooses its kernels by where in memory the weights lie.
            torch.testing.assert_close(again(PIXELS).logits, model(PIXELS).logits)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())
    assert {name for name, _ in model.named_buffers()} <= expected.keys()


@every_network
def test_another_label_set_re_initialises_the_classifiers_alone(case, tmp_path):
    model = case.build()
    fill_weights(model)
    model.save_pretrained(tmp_path)
    names = {i: f"class {i}" for i in range(700)}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    again = type(model).from_pretrained(tmp_path, ignore_mismatched_sizes=True, **labels)
    assert again.config.num_labels == 700
    expected, fresh = model.state_dict(), case.build(num_labels=700).state_dict()
    classifiers = {name for name in expected if "classifier." in name}
    for name, value in again.state_dict().items():
        if name not in classifiers:
            assert torch.equal(value, expected[name])
        elif name.endswith("weight"):
            assert value.std().item() == pytest.approx(fresh[name].std().item(), rel=0.15)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path, **labels)


@pytest.mark.parametrize("name", ["deeplabv3plus_resnet", "pspnet", "isanet", "hrnet"])
def test_the_pipeline_gives_the_networks_own_mask_without_a_complaint(name, tmp_path, capfd):
    CASES[name].build(id2label={i: f"class {i}" for i in range(5)}).save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 64, "width": 80}).save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8))
    pieces = pipeline("image-segmentation", model=str(tmp_path))(image, subtask="semantic")
    assert "is not supported" not in capfd.readouterr().err
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        logits = model(**AutoImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")).logits
    mask = logits[0].argmax(0).numpy()
    assert {piece["label"] for piece in pieces} == {f"class {i}" for i in np.unique(mask)}
    for piece in pieces:
        assert np.array_equal(np.asarray(piece["mask"]) > 0, mask == int(piece["label"].split()[1]))


@pytest.mark.slow
def test_saved_code_loads_where_the_package_is_not_installed_and_is_saved_again_from_there(tmp_path):
    for name, case in CASES.items():
        model = case.build()
        fill_weights(model)
        save_network(model, tmp_path / name, self_contained=True)
        torch.save(model(torch.ones(1, 3, 64, 64)).logits.detach(), tmp_path / name / "expected.pt")
    load = """
import sys, torch
from pathlib import Path
sys.modules["hf_segkd"] = None  # any import of it fails now, installed or not
from transformers import AutoModelForSemanticSegmentation
for folder in map(Path, sys.argv[1:]):
    for source in (folder, folder / "again"):
        model = AutoModelForSemanticSegmentation.from_pretrained(source, trust_remote_code=True).eval()
        torch.testing.assert_close(model(torch.ones(1, 3, 64, 64)).logits, torch.load(folder / "expected.pt"))
        model.save_pretrained(folder / "again")
    assert {file.name for file in (folder / "again").glob("*.py")} == {file.name for file in folder.glob("*.py")}
"""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["HF_HOME"] = str(tmp_path / "home")
    folders = [str(tmp_path / name) for name in CASES]
    subprocess.run([sys.executable, "-c", load, *folders], env=env, cwd=tmp_path, check=True)


def test_the_configuration_of_another_network_is_refused(tmp_path):
    tiny_hrnet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="one of 'segkd-hrnet', but PSPNetConfig is that of 'segkd-pspnet'"):
        PSPNetForSemanticSegmentation.from_pretrained(tmp_path)


@every_network
def test_a_networks_folder_gives_its_backbone_and_a_backbones_folder_a_network_with_a_new_head(case, tmp_path):
    model = case.build()
    fill_weights(model)
    expected = model.backbone.state_dict()
    model.save_pretrained(tmp_path / "network")
    backbone = type(model.backbone).from_pretrained(tmp_path / "network")
    backbone.save_pretrained(tmp_path / "backbone")
    options = {"num_labels": 3}
    if type(model) is not HRNetForSemanticSegmentation:
        options["use_auxiliary_head"] = model.auxiliary_head is not None
    if type(model) is DeepLabV3PlusForSemanticSegmentation:
        options["layout"] = model.config.layout
    again, info = type(model).from_pretrained(tmp_path / "backbone", output_loading_info=True, **options)
    for network in (backbone, again.backbone):
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert again.state_dict().keys() == model.state_dict().keys()
    fresh = type(model.config)(backbone_config=model.config.backbone_config.to_dict(), **options)
    fields = ("align_corners", "num_labels", "aspp_channels", "channels", "use_auxiliary_head")
    assert all(getattr(again.config, name, None) == getattr(fresh, name, None) for name in fields)
    assert info["missing_keys"]
    assert not any(name.startswith("backbone.") for name in info["missing_keys"])


def test_a_named_backbone_comes_back_and_cannot_change_behind_the_networks_back(tmp_path):
    for config_class, name, other in (
        (DeepLabV3PlusConfig, "resnet101", "resnet18"),
        (PSPNetConfig, "resnet101", "resnet18"),
        (ISANetConfig, "resnet101", "resnet18"),
        (HRNetConfig, "hrnet_w48", "hrnet_w18"),
    ):
        config_class(backbone=name).save_pretrained(tmp_path)
        again = config_class.from_pretrained(tmp_path)
        assert (again.backbone, geometry(again.backbone_config)) == (
            name,
            geometry(config_class(backbone=name).backbone_config),
        )
        with pytest.raises(ValueError, match="backbone is fixed"):
            config_class.from_pretrained(tmp_path, backbone=other)
