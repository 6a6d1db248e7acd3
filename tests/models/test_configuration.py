import json

import pytest
from tiny_networks import TINY, tiny_config

from hf_segkd.models import DeepLabV3PlusConfig, SegKDMobileNetV2Config, SegKDResNetConfig


def test_the_default_is_resnet18_at_output_stride_16():
    config = DeepLabV3PlusConfig()
    assert (config.backbone, config.output_stride, config.atrous_rates) == ("resnet18", 16, [6, 12, 18])
    assert config.backbone_config.depths == [2, 2, 2, 2]
    assert config.backbone_config.strides == [1, 2, 2, 1]
    assert config.backbone_config.dilations == [[1, 1], [1, 1], [1, 1], [2, 2]]


def test_resnets_have_the_authors_dilations():
    geometry = {
        (name, stride): DeepLabV3PlusConfig(backbone=name, output_stride=stride).backbone_config
        for name in ("resnet18", "resnet34", "resnet50", "resnet101")
        for stride in (8, 16)
    }
    assert geometry["resnet18", 8].dilations[2:] == [[2, 2], [4, 4]]
    assert geometry["resnet34", 16].dilations[2:] == [[1] * 6, [2, 2, 2]]
    assert geometry["resnet50", 16].dilations[2:] == [[1] * 6, [2, 4, 8]]
    assert geometry["resnet101", 16].dilations[2:] == [[1] * 23, [2, 4, 8]]
    assert geometry["resnet101", 8].dilations[2:] == [[2] * 23, [4, 8, 16]]
    assert all(c.strides == ([1, 2, 2, 1] if s == 16 else [1, 2, 1, 1]) for (_, s), c in geometry.items())


def test_multi_grid_multiplies_the_last_stage():
    config = DeepLabV3PlusConfig(backbone="resnet18", output_stride=8, multi_grid=[1, 3])
    assert config.backbone_config.dilations[3] == [4, 12]


@pytest.mark.parametrize(
    ("output_stride", "late", "dilations"),
    [
        (16, True, [[1, 1, 1, 1], [1, 1, 1], [1, 1, 1], [2]]),
        (8, True, [[1, 1, 1, 1], [2, 2, 2], [2, 2, 2], [4]]),
        (16, False, [[1, 1, 1, 1], [1, 1, 1], [1, 2, 2], [2]]),
        (8, False, [[1, 2, 2, 2], [2, 2, 2], [2, 4, 4], [4]]),
    ],
)
def test_mobilenet_dilates_after_the_dropped_stride_or_one_stage_late(output_stride, late, dilations):
    config = DeepLabV3PlusConfig(backbone="mobilenet_v2", output_stride=output_stride, late_dilation=late)
    backbone = config.backbone_config
    assert backbone.dilations[3:] == dilations
    assert backbone.strides == [1, 2, 2, 1 if output_stride == 8 else 2, 1, 1, 1]


def test_output_stride_8_doubles_the_atrous_rates():
    assert DeepLabV3PlusConfig(output_stride=8).atrous_rates == [12, 24, 36]
    assert DeepLabV3PlusConfig(output_stride=8, atrous_rates=(1, 2, 3)).atrous_rates == [1, 2, 3]


@pytest.mark.parametrize(
    ("keyword", "nearest"),
    [("outputstride", "output_stride"), ("num_classes", "num_labels"), ("atrous_rate", "atrous_rates")],
)
def test_an_unknown_keyword_names_the_nearest_field(keyword, nearest):
    with pytest.raises(ValueError, match=rf"unknown keyword argument '{keyword}'.*it knows is '{nearest}'"):
        DeepLabV3PlusConfig(**{keyword: 8})


def test_an_unknown_keyword_of_a_backbone_is_an_error_too():
    with pytest.raises(ValueError, match=r"'dephts'.*is 'depths'"):
        SegKDResNetConfig(dephts=[1, 1, 1, 1])
    with pytest.raises(ValueError, match=r"'dephts'.*is 'depths'"):
        DeepLabV3PlusConfig(backbone_config={"model_type": "segkd-resnet", "dephts": [1, 1, 1, 1]})


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"backbone": "resnet101", "output_stride": 8, "id2label": {0: "road", 1: "sky"}},
        {"backbone": "resnet50", "multi_grid": (1, 1, 2), "atrous_rates": (2, 4, 6)},
        {"backbone": "mobilenet_v2", "depth_multiplier": 0.35, "late_dilation": True, "aspp_channels": 64},
        TINY["resnet"],
        TINY["bottleneck"],
        {"backbone_config": {"model_type": "resnet", "out_features": ["stage1", "stage4"], "depths": [1, 1, 1, 1]}},
    ],
)
def test_config_json_brings_back_the_same_configuration(kwargs, tmp_path):
    config = DeepLabV3PlusConfig(**kwargs)
    config.save_pretrained(tmp_path)
    again = DeepLabV3PlusConfig.from_pretrained(tmp_path)
    assert {**again.to_dict(), "transformers_version": None} == {**config.to_dict(), "transformers_version": None}
    assert type(again.backbone_config) is type(config.backbone_config)


def test_config_json_with_entries_of_another_version_still_loads(tmp_path):
    config = tiny_config()
    config.use_cache = False  # Trainer sets it on every model
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["from_the_future"] = values["backbone_config"]["from_the_future"] = 1
    path.write_text(json.dumps(values))
    assert DeepLabV3PlusConfig.from_pretrained(tmp_path).backbone_config.width == 8


def test_num_labels_can_change_on_loading(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert DeepLabV3PlusConfig.from_pretrained(tmp_path, num_labels=9).num_labels == 9


def test_a_shorthand_field_cannot_change_behind_the_backbones_back(tmp_path):
    DeepLabV3PlusConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="output_stride is fixed"):
        DeepLabV3PlusConfig.from_pretrained(tmp_path, output_stride=8)
    with pytest.raises(ValueError, match="layout is fixed"):
        DeepLabV3PlusConfig.from_pretrained(tmp_path, layout="mmsegmentation")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backbone": "resnet20"}, "resnet18, resnet34"),
        ({"output_stride": 32}, "8 or 16"),
        ({"multi_grid": [1, 2, 4]}, "2 blocks in resnet18"),
        ({"backbone": "mobilenet_v2", "multi_grid": [1, 2, 4]}, "belongs to ResNets"),
        ({"depth_multiplier": 0.5}, "belong to mobilenet_v2"),
        ({"atrous_rates": [6, 12]}, "three positive dilations"),
        ({"aspp_channels": 0}, "at least 1"),
        ({"aspp_dropout": 1.5}, "probability"),
        ({"num_labels": 1}, "at least 2"),
        ({"backbone_config": {"width": 8}}, "model_type"),
        ({"output_stride": 8, **TINY["resnet"]}, "output_stride belong to a backbone given by name"),
        ({"backbone": "resnet18", **TINY["resnet"]}, "describe different networks"),
    ],
)
def test_what_cannot_be_built_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DeepLabV3PlusConfig(**kwargs)


@pytest.mark.parametrize(
    ("config_class", "kwargs", "message"),
    [
        (SegKDResNetConfig, {"layer_type": "wide"}, "'basic' or 'bottleneck'"),
        (SegKDResNetConfig, {"depths": [2, 2, 2]}, "four positive"),
        (SegKDResNetConfig, {"strides": [1, 2, 2, 3]}, "1 or 2"),
        (SegKDResNetConfig, {"dilations": [[1, 1]] * 3}, "one positive number per block"),
        (SegKDMobileNetV2Config, {"depth_multiplier": 0.0}, "positive"),
    ],
)
def test_backbones_that_cannot_be_built_are_refused(config_class, kwargs, message):
    with pytest.raises(ValueError, match=message):
        config_class(**kwargs)
