"""What the networks in mmsegmentation's form share: counts, taps, auxiliary head, saving, exporting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_mmseg_networks import NETWORKS, TINY_BACKBONE, tiny_network
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, SegformerImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from hf_segkd.models.auto_registration import register_configs, register_image_processors, register_models
from hf_segkd.models.configuration_backbones import geometry

PIXELS = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 4 - 2
LABELS = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
EACH = pytest.mark.parametrize("kind", NETWORKS)
# With 19 classes, auxiliary head included.
PARAMETERS = {
    ("pspnet", "resnet101"): 67_967_622,
    ("pspnet", "resnet18"): 12_790_086,
    ("isanet", "resnet101"): 56_699_526,
    ("isanet", "resnet18"): 12_086_598,
    ("deeplabv3plus", "resnet101"): 62_582_006,
    ("deeplabv3plus", "mobilenet_v2"): 15_244_374,
}


@pytest.fixture(autouse=True)
def _registered():
    for register in (register_configs, register_models, register_image_processors):
        register()


@pytest.mark.parametrize(("kind", "backbone"), PARAMETERS)
def test_parameter_counts_are_mmsegmentations(kind, backbone):
    model_class, config_class, head = NETWORKS[kind]
    layout = {"layout": head["layout"]} if "layout" in head else {}
    with torch.device("meta"):
        model = model_class(config_class(backbone=backbone, num_labels=19, **layout))
    assert model.num_parameters() == PARAMETERS[kind, backbone]


@EACH
@pytest.mark.parametrize("size", [(65, 97), (64, 64), (70, 51)])
def test_any_size_gives_logits_of_that_size(kind, size):
    with torch.inference_mode():
        assert tiny_network(kind)(torch.rand(1, 3, *size)).logits.shape == (1, 5, *size)


@EACH
def test_features_are_there_on_request_with_the_announced_channels_at_output_stride_8(kind):
    model = tiny_network(kind)
    with torch.inference_mode():
        assert model(PIXELS).features is None
        output = model(PIXELS, output_features=True)
    assert {name: tap.shape[1] for name, tap in output.features.items()} == model.tap_channels
    assert output.features["backbone"].shape[-2:] == output.features["stage3"].shape[-2:] == (9, 13)
    stride_of_logits = 4 if kind == "deeplabv3plus" else 8
    assert output.features["logits"].shape[-2] == -(-65 // stride_of_logits)


@EACH
def test_each_tap_and_its_other_side_differ_by_the_activation(kind):
    features = tiny_network(kind).train()(PIXELS, output_features=True).features
    assert torch.equal(features["backbone_post"], F.relu(features["backbone"]))
    assert features["backbone"] is features["stage4_pre"]
    for tap in ("decoder", "stage1", "stage2", "stage3", "stage4"):
        assert features[f"{tap}_pre"].min() < 0
        assert torch.equal(features[tap], F.relu(features[f"{tap}_pre"]))


@EACH
def test_the_bias_of_a_taps_norm_shifts_that_tap(kind):
    model = tiny_network(kind)
    assert {"backbone", "decoder_pre", "stage1_pre", "stage4_pre"} <= model.tap_norms.keys()
    with torch.no_grad():
        for tap, (_, bias) in model.tap_norms.items():
            before = model(PIXELS, output_features=True).features[tap]
            bias += 1.0
            after = model(PIXELS, output_features=True).features[tap]
            bias -= 1.0
            torch.testing.assert_close(after, before + 1.0)


@EACH
@pytest.mark.parametrize("align_corners", [True, False])
def test_classifier_on_the_decoder_tap_gives_the_logits_which_are_resized_once(kind, align_corners):
    model = tiny_network(kind, align_corners=align_corners)
    with torch.inference_mode():
        output = model(PIXELS, output_features=True)
        head = model.classifier(output.features["decoder"])
    torch.testing.assert_close(head, output.features["logits"])
    resized = F.interpolate(head, size=(65, 97), mode="bilinear", align_corners=align_corners)
    torch.testing.assert_close(resized, output.logits)


@EACH
def test_the_auxiliary_head_adds_its_weighted_loss_in_training_alone(kind):
    model = tiny_network(kind, classifier_dropout=0.0, auxiliary_loss_weight=0.3)
    labels = LABELS.clone()
    labels[:, :20] = 255
    for training in (False, True):
        model.train(training)
        with torch.no_grad():
            output = model(PIXELS, labels, output_features=True)
            auxiliary = model.auxiliary_head(output.features["stage3"])
            auxiliary = F.interpolate(auxiliary, size=(65, 97), mode="bilinear", align_corners=False)
        expected = F.cross_entropy(output.logits, labels, ignore_index=255)
        expected += training * 0.3 * F.cross_entropy(auxiliary, labels, ignore_index=255)
        torch.testing.assert_close(output.loss, expected)


@EACH
def test_without_an_auxiliary_head_the_backbone_needs_no_map_for_it(kind):
    ends = {**TINY_BACKBONE, "out_features": ["stage1", "stage4"] if kind == "deeplabv3plus" else ["stage4"]}
    model = tiny_network(kind, use_auxiliary_head=False, backbone_config=ends).train()
    assert model.auxiliary_head is None
    assert model(PIXELS, LABELS).loss.isfinite()
    with pytest.raises(ValueError, match=r"returns \d map.*out_features"):
        tiny_network(kind, backbone_config=ends)


@EACH
def test_the_loss_reaches_every_parameter(kind):
    model = tiny_network(kind).train()
    model(PIXELS, LABELS).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@EACH
def test_the_dropout_before_the_classifiers_drops_whole_channels(kind):
    model = tiny_network(kind, classifier_dropout=0.5).train()
    for dropout in (model.classifier_dropout, model.auxiliary_head.dropout):
        dropped = dropout(torch.ones(4, 16, 3, 3)).eq(0)
        assert dropped.any()
        assert torch.equal(dropped, dropped[:, :, :1, :1].expand_as(dropped))


@EACH
def test_classifiers_start_small_and_the_rest_with_kaiming_normal_weights(kind):
    model = tiny_network(kind, num_labels=200)
    for classifier in (model.classifier, model.auxiliary_head.classifier):
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert classifier.bias.eq(0).all()
    conv = model.auxiliary_head.conv.conv.weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.15)


@EACH
def test_what_was_saved_loads_through_the_auto_classes(kind, tmp_path):
    model = tiny_network(kind)
    model.save_pretrained(tmp_path)
    SegformerImageProcessor().save_pretrained(tmp_path)
    again, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    with torch.inference_mode():
        torch.testing.assert_close(again(PIXELS).logits, model(PIXELS).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (type(config), geometry(config.backbone_config)) == (
        type(model.config),
        geometry(model.config.backbone_config),
    )
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SegformerImageProcessor
    assert MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[model.config.model_type] == type(model).__name__


@EACH
def test_a_backbone_by_name_comes_back_and_cannot_change_behind_the_networks_back(kind, tmp_path):
    _, config_class, head = NETWORKS[kind]
    config_class(backbone="resnet101", **head).save_pretrained(tmp_path)
    again = config_class.from_pretrained(tmp_path)
    assert (again.backbone, again.backbone_config.depths) == ("resnet101", [3, 4, 23, 3])
    with pytest.raises(ValueError, match="backbone is fixed"):
        config_class.from_pretrained(tmp_path, backbone="resnet18")


@EACH
def test_compiled_as_one_graph_it_gives_the_same(kind):
    torch._dynamo.reset()
    model = tiny_network(kind).train()
    model.classifier_dropout.p = model.auxiliary_head.dropout.p = 0.0

    def step(pixels, labels):
        output = model(pixels, labels, output_features=True)
        return output.loss, output.logits, output.features["backbone"]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(PIXELS, LABELS), step(PIXELS, LABELS), strict=True):
        torch.testing.assert_close(actual, expected)


@EACH
def test_exported_with_dynamic_shapes_it_gives_the_same_at_another_size(kind):
    model = tiny_network(kind)
    open_sides = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported = torch.export.export(model, (PIXELS,), dynamic_shapes={"pixel_values": open_sides}, strict=False)
    other = torch.rand(3, 3, 99, 133)  # ISANet's graph is bound to sizes that need padding, as this one and PIXELS
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(other).logits, model(other).logits)


@pytest.mark.slow
@EACH
def test_saved_code_loads_where_the_package_is_not_installed(kind, tmp_path):
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from tiny_mmseg_networks import NETWORKS, tiny_network
import torch
model_class, config_class, _ = NETWORKS[sys.argv[3]]
config_class.register_for_auto_class()
model_class.register_for_auto_class("AutoModelForSemanticSegmentation")
model = tiny_network(sys.argv[3])
model.save_pretrained(sys.argv[1])
torch.save(model(torch.ones(1, 3, 64, 64)).logits.detach(), sys.argv[1] + "/expected.pt")
"""
    model_dir, here = str(tmp_path / "model"), str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", script, model_dir, here, kind], check=True, env=environment)
    load = """
import sys, torch
sys.modules["hf_segkd"] = None  # any import of it fails now, installed or not
from transformers import AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
torch.testing.assert_close(model(torch.ones(1, 3, 64, 64)).logits, torch.load(sys.argv[1] + "/expected.pt"))
"""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["HF_HOME"] = str(tmp_path / "home")
    subprocess.run([sys.executable, "-c", load, model_dir], env=env, cwd=tmp_path, check=True)
