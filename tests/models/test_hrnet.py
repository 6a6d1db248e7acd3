import pytest
import torch
import torch.nn.functional as F
from tiny_mmseg_networks import tiny_network
from tiny_networks import TINY_HRNET as TINY
from tiny_networks import fill_weights, tiny_hrnet

from hf_segkd.models import (
    HRNetConfig,
    HRNetForSemanticSegmentation,
    SegKDHRNetBackbone,
    SegKDHRNetBackboneConfig,
    load_pretrained_backbone,
)
from hf_segkd.models.modeling_hrnet import HighResolutionModule

PIXELS = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 4 - 2
LABELS = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
CHANNELS = [4, 8, 16, 32]
STAGES = [f"stage{i}" for i in (1, 2, 3, 4)]


def test_taps_are_the_branches_and_what_the_head_makes_of_them():
    model = tiny_hrnet()
    with torch.inference_mode():
        features = model(PIXELS, output_features=True).features
    assert [tuple(features[stage].shape[1:]) for stage in STAGES] == list(
        zip(CHANNELS, [17, 9, 5, 3], [25, 13, 7, 4], strict=True)
    )
    assert features["low_level"] is features["stage1"]
    assert features["low_level_pre"] is features["stage1_pre"]
    assert features["backbone"] is features["stage4_pre"]
    assert features["backbone_post"] is features["stage4"]
    assert features["encoder"] is features["encoder_pre"]


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_head_follows_from_the_stages_and_align_corners(align_corners):
    model = tiny_hrnet(align_corners=align_corners)
    with torch.inference_mode():
        output = model(PIXELS, output_features=True)
        taps = output.features
        resized = [
            F.interpolate(taps[stage], size=(17, 25), mode="bilinear", align_corners=align_corners) for stage in STAGES
        ]
        torch.testing.assert_close(taps["encoder"], torch.cat(resized, dim=1))
        torch.testing.assert_close(taps["decoder_pre"], model.decoder.norm(model.decoder.conv(taps["encoder"])))
        torch.testing.assert_close(taps["logits"], model.classifier(taps["decoder"]))
        logits = F.interpolate(taps["logits"], size=(65, 97), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(output.logits, logits)


def test_one_image_can_be_trained_on():
    assert tiny_hrnet().train()(PIXELS[:1], LABELS[:1]).loss.isfinite()


def test_a_new_network_starts_as_mmsegmentations_does():
    torch.manual_seed(0)
    model = HRNetForSemanticSegmentation(HRNetConfig(num_labels=150))
    conv = model.backbone.transition3[3][0][0].weight  # fan-out 144 * 9, fan-in 72 * 9
    assert conv.std().item() == pytest.approx((2 / (144 * 9)) ** 0.5, rel=0.05)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.classifier.bias.eq(0).all()
    assert model.decoder.norm.weight.eq(1).all()


def test_the_backbone_returns_the_branches_it_is_asked_for():
    backbone = SegKDHRNetBackbone(SegKDHRNetBackboneConfig(**TINY, out_features=["stem", "branch2"]))
    with torch.inference_mode():
        output = backbone(PIXELS, output_hidden_states=True)
    assert backbone.channels == [m.shape[1] for m in output.feature_maps] == [64, 8]
    assert torch.equal(output.pre_activations[1].relu(), output.feature_maps[1])
    assert [state.shape[1] for state in output.hidden_states] == backbone.num_features == [64, *CHANNELS]


def test_weights_of_the_authors_classification_network_fill_the_backbone(tmp_path):
    model, source = tiny_hrnet(), tiny_hrnet().backbone
    fill_weights(source)
    surplus = ["incre_modules.0.0.conv1.weight", "downsamp_modules.0.0.bias", "final_layer.0.bias", "classifier.bias"]
    path = tmp_path / "hrnet.pth"
    torch.save({**source.state_dict(), **{name: torch.zeros(1) for name in surplus}}, path)
    assert load_pretrained_backbone(model, path) == surplus
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.parameters(), source.parameters(), strict=True))
    with pytest.raises(ValueError, match="torchvision has no weights for this backbone"):
        load_pretrained_backbone(model, "IMAGENET1K_V1")


def test_where_a_stride_rounded_up_a_lower_branch_is_resized_twice():
    torch.manual_seed(0)
    module = HighResolutionModule([4, 8], num_blocks=1).eval()
    high, low = torch.rand(1, 4, 17, 25), torch.rand(1, 8, 9, 13)
    with torch.inference_mode():
        sums = module([high, low])
        high, low = (F.relu(branch(x)) for branch, x in zip(module.branches, (high, low), strict=True))
        doubled = F.interpolate(module.fuse_layers[0][1](low), size=(18, 26), mode="bilinear")
        torch.testing.assert_close(sums[0], high + F.interpolate(doubled, size=(17, 25), mode="bilinear"))
        torch.testing.assert_close(sums[1], module.fuse_layers[1][0](high) + low)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"backbone": "hrnet_w48", "align_corners": True, "id2label": {0: "road", 1: "sky"}},
        {"backbone_config": TINY},
    ],
)
def test_config_json_brings_back_the_same_configuration(kwargs, tmp_path):
    config = HRNetConfig(**kwargs)
    config.save_pretrained(tmp_path)
    again = HRNetConfig.from_pretrained(tmp_path)
    assert {**again.to_dict(), "transformers_version": None} == {**config.to_dict(), "transformers_version": None}
    assert type(again.backbone_config) is SegKDHRNetBackboneConfig


def test_the_default_is_the_small_one():
    config = HRNetConfig()
    assert (config.backbone, config.backbone_config.width, config.align_corners) == ("hrnet_w18_small", 18, False)
    assert SegKDHRNetBackboneConfig(stage_names=["other"]).stage_names == [
        "stem",
        "branch1",
        "branch2",
        "branch3",
        "branch4",
    ]


def test_config_json_with_entries_of_another_version_still_loads():
    values = HRNetConfig(backbone_config=TINY).to_dict()
    values["from_the_future"] = values["backbone_config"]["from_the_future"] = 1
    assert HRNetConfig.from_dict(values).backbone_config.width == 4


@pytest.mark.parametrize(
    ("config_class", "kwargs", "message"),
    [
        (HRNetConfig, {"backbone": "hrnet_w30"}, "hrnet_w18_small, hrnet_w18, hrnet_w48"),
        (HRNetConfig, {"num_labels": 1}, "at least 2"),
        (HRNetConfig, {"backbone_config": {"model_type": "segkd-resnet"}}, "'segkd-hrnet-backbone', got"),
        (HRNetConfig, {"backbone": "hrnet_w48", "backbone_config": TINY}, "describe different networks"),
        (HRNetConfig, {"align_corner": True}, "it knows is 'align_corners'"),
        (SegKDHRNetBackboneConfig, {"num_modules": [1, 2]}, "three positive numbers"),
        (SegKDHRNetBackboneConfig, {"num_blocks": 0}, "num_blocks must be at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(config_class, kwargs, message):
    with pytest.raises(ValueError, match=message):
        config_class(**kwargs)


def test_it_is_no_backbone_for_another_head():
    backbone_config = SegKDHRNetBackboneConfig(**TINY, out_features=["branch1", "branch3", "branch4"])
    for kind in ("pspnet", "isanet", "deeplabv3plus"):
        with pytest.raises(ValueError, match="HRNetForSemanticSegmentation alone"):
            tiny_network(kind, backbone_config=backbone_config)
