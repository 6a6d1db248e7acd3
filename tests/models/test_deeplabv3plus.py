import pytest
import torch
import torch.nn.functional as F
from tiny_networks import HEAD, TINY, tiny_model

from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation

PIXELS = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 4 - 2
LABELS = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
KINDS = pytest.mark.parametrize("kind", TINY)


@pytest.mark.parametrize(
    ("kind", "channels", "heights"),
    [
        ("resnet", [8, 16, 32, 64], [17, 9, 5, 5]),
        ("bottleneck", [32, 64, 128, 256], [17, 9, 5, 3]),
        ("mobilenet_v2", [8, 8, 24, 80], [17, 9, 5, 5]),
    ],
)
def test_stage_taps_are_the_last_maps_of_each_resolution_whatever_the_backbone_returns(kind, channels, heights):
    model = tiny_model(kind)
    with torch.inference_mode():
        output = model(PIXELS, output_features=True)
        states = model.backbone(PIXELS, output_hidden_states=True).hidden_states
    features = output.features
    taps = [features[f"stage{i}"] for i in (1, 2, 3, 4)]
    assert [(tap.shape[1], tap.shape[2]) for tap in taps] == list(zip(channels, heights, strict=True))
    assert [next(i for i, state in enumerate(states) if torch.equal(state, tap)) for tap in taps] == (
        [2, 3, 5, 7] if kind == "mobilenet_v2" else [1, 2, 3, 4]
    )
    assert features["low_level"] is taps[0]
    assert features["backbone_post"] is taps[3]
    assert features["low_level_pre"] is features["stage1_pre"]
    assert features["backbone"] is features["stage4_pre"]
    assert output.hidden_states is None  # not asked for
    assert len(model.config.backbone_config.out_features) == 2


def test_taps_at_other_ends_of_the_backbone_have_no_norm_of_their_own():
    own = {"model_type": "segkd-mobilenet-v2", "depth_multiplier": 0.25, "out_features": ["stage1", "stage6"]}
    assert {"low_level_pre", "backbone"}.isdisjoint(tiny_model(backbone_config=own).tap_norms)


@pytest.mark.parametrize("align_corners", [True, False])
def test_align_corners_governs_every_resize(align_corners):
    model = tiny_model(align_corners=align_corners)
    with torch.inference_mode():
        output = model(PIXELS, output_features=True)
        taps = output.features
        encoder = F.interpolate(taps["encoder"], size=(17, 25), mode="bilinear", align_corners=align_corners)
        low_level = F.relu(model.decoder.low_level(taps["low_level"]))
        decoder = model.decoder.refine(F.relu(model.decoder.fuse(torch.cat([encoder, low_level], dim=1))))
        torch.testing.assert_close(decoder, taps["decoder_pre"])
        resized = F.interpolate(taps["logits"], size=(65, 97), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(resized, output.logits)


@KINDS
def test_one_image_works_in_evaluation_and_is_refused_in_training(kind):
    model = tiny_model(kind)
    with torch.inference_mode():
        assert torch.isfinite(model(PIXELS[:1]).logits).all()
    with pytest.raises(ValueError, match="batch of one image"):
        model.train()(PIXELS[:1])


def test_a_backbone_of_transformers_fits():
    config = DeepLabV3PlusConfig(
        backbone_config={
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 8, 16, 24],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "out_features": ["stage1", "stage4"],
        },
        **HEAD,
    )
    model = DeepLabV3PlusForSemanticSegmentation(config).eval()
    assert (model.tap_channels["low_level"], model.tap_channels["backbone"]) == (8, 24)
    with torch.inference_mode():
        output = model(PIXELS, output_features=True)
    assert output.logits.shape == (2, 5, 65, 97)
    assert torch.equal(output.features["backbone"], output.features["backbone_post"])
    assert output.features["stage4"] is output.features["stage4_pre"] is output.features["backbone"]
    assert output.features.keys() == model.tap_channels.keys()
    assert "stage2" not in model.tap_channels
    assert model.tap_norms.keys() == {"encoder_pre", "decoder_pre"}


def test_a_backbone_with_a_single_map_is_refused():
    with pytest.raises(ValueError, match=r"returns 1 map.*out_features"):
        DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(backbone_config={"model_type": "segkd-resnet"}))


def test_heads_start_with_kaiming_normal_weights():
    torch.manual_seed(0)
    model = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig())
    weight = model.aspp.branches[1].conv.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert model.decoder.fuse.norm.weight.eq(1).all()
