import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_networks import fill_weights
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    SegformerImageProcessor,
    pipeline,
)

from hf_segkd.models import (
    HRNetConfig,
    HRNetForSemanticSegmentation,
    SegKDHRNetBackbone,
    SegKDHRNetBackboneConfig,
    load_pretrained_backbone,
)
from hf_segkd.models.auto_registration import register_configs, register_image_processors, register_models
from hf_segkd.models.modeling_hrnet import HighResolutionModule

PIXELS = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 4 - 2
LABELS = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
TINY = {"width": 4, "stem_blocks": 1, "num_modules": [1, 2, 1], "num_blocks": 1}
CHANNELS = [4, 8, 16, 32]
STAGES = [f"stage{i}" for i in (1, 2, 3, 4)]


@pytest.fixture(autouse=True)
def _registered():
    for register in (register_configs, register_models, register_image_processors):
        register()


def tiny_model(**kwargs) -> HRNetForSemanticSegmentation:
    torch.manual_seed(0)
    return HRNetForSemanticSegmentation(HRNetConfig(backbone_config=TINY, num_labels=5, **kwargs)).eval()


@pytest.mark.parametrize(
    ("backbone", "num_labels", "parameters"),
    [
        ("hrnet_w48", 19, 65_858_659),
        ("hrnet_w18_small", 19, 3_939_309),
        ("hrnet_w48", 150, 65_953_110),
        ("hrnet_w18", 150, 9_676_350),
        ("hrnet_w18_small", 150, 3_974_810),
    ],
)
def test_parameter_counts_are_mmsegmentations(backbone, num_labels, parameters):
    with torch.device("meta"):
        model = HRNetForSemanticSegmentation(HRNetConfig(backbone=backbone, num_labels=num_labels))
    assert model.num_parameters() == parameters


def test_features_are_there_on_request_with_the_announced_channels():
    model = tiny_model()
    with torch.inference_mode():
        assert model(PIXELS).features is None
        output = model(PIXELS, output_features=True)
    features = output.features
    assert {name: tap.shape[1] for name, tap in features.items()} == model.tap_channels
    assert output.logits.shape == (2, 5, 65, 97)
    assert [tuple(features[stage].shape[1:]) for stage in STAGES] == list(
        zip(CHANNELS, [17, 9, 5, 3], [25, 13, 7, 4], strict=True)
    )
    assert all(features[name].shape[-2:] == (17, 25) for name in ("encoder", "decoder", "logits"))
    assert features["low_level"] is features["stage1"]
    assert features["low_level_pre"] is features["stage1_pre"]
    assert features["backbone"] is features["stage4_pre"]
    assert features["backbone_post"] is features["stage4"]
    assert features["encoder"] is features["encoder_pre"]
    assert output.hidden_states is None  # not asked for


def test_each_tap_and_its_other_side_differ_by_the_activation():
    features = tiny_model().train()(PIXELS, output_features=True).features
    for name in (*STAGES, "low_level", "decoder"):
        assert features[f"{name}_pre"].min() < 0
        assert torch.equal(features[name], F.relu(features[f"{name}_pre"]))
    assert torch.equal(features["backbone_post"], F.relu(features["backbone"]))


def test_the_bias_of_a_taps_norm_shifts_that_tap():
    model = tiny_model()
    ((tap, (weight, bias)),) = model.tap_norms.items()
    assert weight.shape == bias.shape == (model.tap_channels[tap],)
    assert not bias.requires_grad
    with torch.no_grad():
        before = model(PIXELS, output_features=True).features[tap]
        bias += 1.0
        after = model(PIXELS, output_features=True).features[tap]
    torch.testing.assert_close(after, before + 1.0)


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_head_follows_from_the_stages_and_align_corners(align_corners):
    model = tiny_model(align_corners=align_corners)
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


def test_asking_for_features_changes_neither_logits_nor_gradients():
    results = []
    for ask in (None, True):
        model = tiny_model().train()
        output = model(PIXELS, LABELS, output_features=ask)
        output.loss.backward()
        results.append((output.logits, [p.grad for p in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_the_loss_reaches_every_parameter():
    model = tiny_model().train()
    model(PIXELS, LABELS).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_one_image_can_be_trained_on():
    assert tiny_model().train()(PIXELS[:1], LABELS[:1]).loss.isfinite()


def test_loss_is_the_mean_cross_entropy_of_the_labelled_pixels():
    labels = LABELS.clone()
    labels[:, :20] = 7
    output = tiny_model(semantic_loss_ignore_index=7)(PIXELS, labels)
    expected = F.cross_entropy(output.logits.double(), labels, ignore_index=7)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (70, 131)])
def test_any_size_gives_logits_of_that_size(size):
    with torch.inference_mode():
        assert tiny_model()(torch.rand(1, 3, *size)).logits.shape[-2:] == size


def test_bf16_autocast_and_channels_last_stay_close():
    model = tiny_model()
    fill_weights(model)
    with torch.inference_mode():
        expected = model(PIXELS).logits
        model = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low_precision = model(PIXELS, LABELS)
    assert low_precision.loss.dtype == torch.float32
    error = (low_precision.logits - expected).square().mean().sqrt()
    assert 0 < error < 0.2 * expected.std()


def test_save_and_load_gives_identical_logits_without_a_network_connection(tmp_path, monkeypatch):
    model = tiny_model()
    fill_weights(model)
    model.save_pretrained(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    again, info = HRNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        assert torch.equal(again.eval()(PIXELS).logits, model(PIXELS).logits)


def test_a_new_network_starts_as_mmsegmentations_does():
    torch.manual_seed(0)
    model = HRNetForSemanticSegmentation(HRNetConfig(num_labels=150))
    conv = model.backbone.transition3[3][0][0].weight  # fan-out 144 * 9, fan-in 72 * 9
    assert conv.std().item() == pytest.approx((2 / (144 * 9)) ** 0.5, rel=0.05)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.classifier.bias.eq(0).all()
    assert model.decoder.norm.weight.eq(1).all()


def test_it_tells_trainer_and_fsdp_what_they_ask():
    model = tiny_model()
    assert model.accepts_loss_kwargs is False
    assert model.config.keys_to_ignore_at_inference == ["features"]
    assert model.get_input_embeddings() is None
    assert model.base_model is model.backbone
    assert {"BasicBlock", "Bottleneck"} == set(model._no_split_modules) == set(model.backbone._no_split_modules)


def test_compiled_as_one_graph_it_gives_the_same():
    torch._dynamo.reset()
    model = tiny_model()

    def step(pixels, labels):
        output = model(pixels, labels, output_features=True)
        return output.loss, output.logits, output.features["backbone"]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for actual, expected in zip(compiled(PIXELS, LABELS), step(PIXELS, LABELS), strict=True):
            torch.testing.assert_close(actual, expected)


def test_exported_with_dynamic_shapes_it_gives_the_same_at_another_size():
    model = tiny_model()
    batch, height, width = (
        torch.export.Dim(name, min=low) for name, low in (("batch", 2), ("height", 33), ("width", 33))
    )
    exported = torch.export.export(
        model, (PIXELS,), dynamic_shapes={"pixel_values": {0: batch, 2: height, 3: width}}, strict=False
    ).module()
    other = torch.rand(3, 3, 80, 51)
    with torch.inference_mode():
        torch.testing.assert_close(exported(other).logits, model(other).logits)


def test_a_tuple_comes_back_when_asked_for():
    model = tiny_model()
    with torch.inference_mode():
        output = model(PIXELS, LABELS, output_hidden_states=True)
        loss, logits, hidden_states = model(PIXELS, LABELS, output_hidden_states=True, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert len(hidden_states) == len(output.hidden_states) == 5


def test_the_backbone_returns_the_branches_it_is_asked_for():
    backbone = SegKDHRNetBackbone(SegKDHRNetBackboneConfig(**TINY, out_features=["stem", "branch2"]))
    with torch.inference_mode():
        output = backbone(PIXELS, output_hidden_states=True)
    assert backbone.channels == [m.shape[1] for m in output.feature_maps] == [64, 8]
    assert torch.equal(output.pre_activations[1].relu(), output.feature_maps[1])
    assert [state.shape[1] for state in output.hidden_states] == backbone.num_features == [64, *CHANNELS]


def test_weights_of_the_authors_classification_network_fill_the_backbone(tmp_path):
    model, source = tiny_model(), tiny_model().backbone
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


def test_auto_classes_load_what_was_saved(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 64, "width": 80}).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is HRNetConfig
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is HRNetForSemanticSegmentation
    assert type(AutoBackbone.from_config(config.backbone_config)) is SegKDHRNetBackbone
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SegformerImageProcessor


def test_the_pipeline_takes_it_without_a_complaint(tmp_path, capfd):
    tiny_model().save_pretrained(tmp_path)
    SegformerImageProcessor(size={"height": 64, "width": 80}).save_pretrained(tmp_path)
    pieces = pipeline("image-segmentation", model=str(tmp_path))(Image.new("RGB", (80, 64)), subtask="semantic")
    assert "is not supported" not in capfd.readouterr().err
    assert {piece["label"] for piece in pieces} <= {f"LABEL_{i}" for i in range(5)}


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


def test_the_name_cannot_change_behind_the_backbones_back(tmp_path):
    HRNetConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="backbone is fixed"):
        HRNetConfig.from_pretrained(tmp_path, backbone="hrnet_w48")


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


@pytest.mark.slow
def test_saved_code_loads_where_the_package_is_not_installed(tmp_path):
    script = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_hrnet import tiny_model
from hf_segkd.models import HRNetConfig, HRNetForSemanticSegmentation
HRNetConfig.register_for_auto_class()
HRNetForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
model = tiny_model()
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
