import pytest
import torch
from tiny_networks import fill_weights
from torch import nn

from hf_segkd.models import (
    SegKDMobileNetV2Backbone,
    SegKDMobileNetV2Config,
    SegKDResNetBackbone,
    SegKDResNetConfig,
)
from hf_segkd.models.backbone_geometry import mobilenet_v2_config, resnet_config

torchvision_models = pytest.importorskip("torchvision.models")
IMAGE = torch.rand(2, 3, 97, 65, generator=torch.Generator().manual_seed(0)) * 4 - 2


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_equals_torchvisions_with_its_weights(name):
    theirs = torchvision_models.get_model(name, weights=None).eval()
    fill_weights(theirs)
    config = resnet_config(name)
    plain = SegKDResNetConfig(layer_type=config.layer_type, depths=config.depths)
    ours = SegKDResNetBackbone(plain).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(weights)
    theirs.avgpool = theirs.fc = nn.Identity()
    with torch.inference_mode():
        torch.testing.assert_close(ours(IMAGE).feature_maps[0].flatten(1), theirs(IMAGE), rtol=0, atol=1e-4)


@pytest.mark.parametrize("depth_multiplier", [0.35, 1.0, 1.4])
def test_mobilenet_equals_torchvisions_with_its_weights(depth_multiplier):
    theirs = torchvision_models.mobilenet_v2(width_mult=depth_multiplier).features[:18].eval()
    fill_weights(theirs)
    ours = SegKDMobileNetV2Backbone(SegKDMobileNetV2Config(depth_multiplier=depth_multiplier)).eval()
    ours.load_state_dict({f"features.{k}": v for k, v in theirs.state_dict().items()})
    with torch.inference_mode():
        torch.testing.assert_close(ours(IMAGE).feature_maps[0], theirs(IMAGE), rtol=0, atol=1e-5)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_mobilenet_sees_on_every_nth_pixel_what_the_strided_one_sees(output_stride):
    strided = SegKDMobileNetV2Backbone(SegKDMobileNetV2Config(depth_multiplier=0.25)).eval()
    dilated = SegKDMobileNetV2Backbone(mobilenet_v2_config(output_stride, depth_multiplier=0.25)).eval()
    fill_weights(strided)
    dilated.load_state_dict(strided.state_dict())
    image = IMAGE[..., :65, :65]
    step = 32 // output_stride
    with torch.inference_mode():
        expected = strided(image).feature_maps[-1]
        torch.testing.assert_close(dilated(image).feature_maps[-1][..., ::step, ::step], expected)


def test_pre_activations_become_the_feature_maps_by_a_relu():
    backbone = SegKDResNetBackbone(SegKDResNetConfig(width=8, depths=[1, 2, 1, 1], out_indices=[1, 2, 3, 4]))
    with torch.inference_mode():
        output = backbone(IMAGE)
    assert [m.shape[1] for m in output.feature_maps] == backbone.channels == [8, 16, 32, 64]
    for before, after in zip(output.pre_activations, output.feature_maps, strict=True):
        assert before.min() < 0
        assert torch.equal(before.relu(), after)


def test_mobilenet_ends_its_stages_without_an_activation():
    backbone = SegKDMobileNetV2Backbone(SegKDMobileNetV2Config(depth_multiplier=0.25, out_features=["stage2"]))
    with torch.inference_mode():
        output = backbone(IMAGE)
    assert output.feature_maps[0].min() < 0
    assert output.pre_activations[0] is output.feature_maps[0]


@pytest.mark.parametrize(
    "backbone",
    [
        SegKDResNetBackbone(SegKDResNetConfig(width=8, depths=[1, 1, 1, 1])),
        SegKDMobileNetV2Backbone(SegKDMobileNetV2Config(depth_multiplier=0.25)),
    ],
    ids=["resnet", "mobilenet_v2"],
)
def test_hidden_states_are_the_stem_and_every_stage(backbone):
    with torch.inference_mode():
        output = backbone(IMAGE, output_hidden_states=True)
        as_tuple = backbone(IMAGE, output_hidden_states=True, return_dict=False)
    assert len(output.hidden_states) == len(backbone.stage_names)
    assert [state.shape[1] for state in output.hidden_states] == backbone.num_features
    assert output.hidden_states[-1] is output.feature_maps[-1]
    assert torch.equal(as_tuple[0][0], output.feature_maps[0])


def test_a_new_backbone_keeps_the_scale_of_its_activations():
    torch.manual_seed(0)
    resnet = SegKDResNetBackbone(SegKDResNetConfig())
    conv = resnet.layer2[0].conv1.weight  # fan-out 128 * 9
    assert conv.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.05)
    mobilenet = SegKDMobileNetV2Backbone(SegKDMobileNetV2Config())
    conv = mobilenet.features[17].conv[0][0].weight  # fan-in 160
    assert conv.std().item() == pytest.approx((2 / 160) ** 0.5, rel=0.05)
