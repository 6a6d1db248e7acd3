"""What every network computes; what one alone has is tested in its own file."""

import math

import pytest
import torch
import torch.nn.functional as F
from network_cases import CASES, LABELS, MMSEG_MOBILENET, PIXELS, every_network
from tiny_mmseg_networks import TINY_BACKBONE, tiny_network
from tiny_networks import fill_weights, tiny_model
from torch import nn

from hf_segkd.export.graph import DenseNetwork, trace
from hf_segkd.models import (
    DeepLabV3PlusConfig,
    DeepLabV3PlusForSemanticSegmentation,
    HRNetConfig,
    HRNetForSemanticSegmentation,
    ISANetConfig,
    ISANetForSemanticSegmentation,
    PSPNetConfig,
    PSPNetForSemanticSegmentation,
)


def the_others_slow(*quick):
    marks = {name: () if name in quick else pytest.mark.slow for name in CASES}
    return pytest.mark.parametrize("case", [pytest.param(CASES[name], id=name, marks=marks[name]) for name in CASES])


# Network, config and the number of parameters in training.
PARAMETERS = [
    # AttnFD's tables, 21 classes.
    (DeepLabV3PlusForSemanticSegmentation, DeepLabV3PlusConfig(backbone="resnet101", num_labels=21), 59_344_309),
    (DeepLabV3PlusForSemanticSegmentation, DeepLabV3PlusConfig(backbone="resnet18", num_labels=21), 16_608_181),
    (DeepLabV3PlusForSemanticSegmentation, DeepLabV3PlusConfig(backbone="mobilenet_v2", num_labels=21), 5_816_053),
    # mmsegmentation's, 19 classes (and 150).
    (PSPNetForSemanticSegmentation, PSPNetConfig(backbone="resnet101", num_labels=19), 67_967_622),
    (PSPNetForSemanticSegmentation, PSPNetConfig(backbone="resnet18", num_labels=19), 12_790_086),
    (ISANetForSemanticSegmentation, ISANetConfig(backbone="resnet101", num_labels=19), 56_699_526),
    (ISANetForSemanticSegmentation, ISANetConfig(backbone="resnet18", num_labels=19), 12_086_598),
    (
        DeepLabV3PlusForSemanticSegmentation,
        DeepLabV3PlusConfig(layout="mmsegmentation", backbone="resnet101", num_labels=19),
        62_582_006,
    ),
    (
        DeepLabV3PlusForSemanticSegmentation,
        DeepLabV3PlusConfig(layout="mmsegmentation", backbone="mobilenet_v2", num_labels=19),
        15_244_374,
    ),
    (HRNetForSemanticSegmentation, HRNetConfig(backbone="hrnet_w48", num_labels=19), 65_858_659),
    (HRNetForSemanticSegmentation, HRNetConfig(backbone="hrnet_w18_small", num_labels=19), 3_939_309),
    (HRNetForSemanticSegmentation, HRNetConfig(backbone="hrnet_w48", num_labels=150), 65_953_110),
    (HRNetForSemanticSegmentation, HRNetConfig(backbone="hrnet_w18", num_labels=150), 9_676_350),
    (HRNetForSemanticSegmentation, HRNetConfig(backbone="hrnet_w18_small", num_labels=150), 3_974_810),
]


@pytest.mark.parametrize(("model_class", "config", "parameters"), PARAMETERS)
def test_full_size_networks_have_as_many_parameters_as_the_originals(model_class, config, parameters):
    with torch.device("meta"):
        assert model_class(config).num_parameters() == parameters


@every_network
@pytest.mark.parametrize("size", [(65, 97), (64, 64), (33, 47), (70, 131)])
def test_any_size_gives_logits_of_that_size(case, size):
    with torch.inference_mode():
        assert case.build()(torch.rand(1, 3, *size)).logits.shape == (1, 5, *size)


STRIDED = {8: [1, 2, 1, 1], 16: [1, 2, 2, 1], 32: [1, 2, 2, 2]}
STRIDED_MOBILENET = {8: [1, 2, 2, 1, 1, 1, 1], 16: [1, 2, 2, 2, 1, 1, 1], 32: [1, 2, 2, 2, 1, 2, 1]}


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("kind", ["deeplabv3plus", "pspnet", "isanet", "attnfd"])
@pytest.mark.parametrize("backbone", ["resnet", "mobilenet_v2"])
def test_every_output_stride_works(kind, backbone, output_stride):
    if backbone == "resnet":
        backbone_config = {**TINY_BACKBONE, "strides": STRIDED[output_stride]}
    else:
        backbone_config = {**MMSEG_MOBILENET, "strides": STRIDED_MOBILENET[output_stride]}
    if kind == "attnfd":
        model = tiny_model("resnet", backbone_config=backbone_config)
    else:
        model = tiny_network(kind, backbone_config=backbone_config)
    with torch.inference_mode():
        output = model(PIXELS, output_features=True)
    assert output.logits.shape == (2, 5, 65, 97)
    size = tuple(math.ceil(side / output_stride) for side in PIXELS.shape[-2:])
    taps = ("backbone", "decoder", "logits") if kind in ("pspnet", "isanet") else ("backbone", "encoder")
    assert all(output.features[tap].shape[-2:] == size for tap in taps)


@every_network
def test_an_image_alone_gives_what_it_gives_in_a_batch(case):
    model = case.build()
    fill_weights(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(PIXELS[:1]).logits, model(PIXELS).logits[:1])


@every_network
def test_taps_are_there_on_request_with_the_announced_channels_at_their_strides(case):
    model = case.build()
    with torch.inference_mode():
        assert model(PIXELS).features is None
        features = model(PIXELS, output_features=True).features
    assert {"backbone", "decoder", "logits", "low_level", "stage1", "stage4_pre"} <= features.keys()
    assert {tap: x.shape[1] for tap, x in features.items()} == model.tap_channels
    sizes = {tap: tuple(math.ceil(side / case.stride(tap)) for side in (65, 97)) for tap in features}
    assert {tap: tuple(x.shape[-2:]) for tap, x in features.items()} == sizes


@every_network
def test_a_tap_and_its_other_side_differ_by_the_activation(case):
    model = case.build().train()
    features = model(PIXELS, output_features=True).features
    linear = model.config.backbone_config.model_type == "segkd-mobilenet-v2"  # its stages end without activation
    pairs = {name.removesuffix("_pre"): name for name in features if name.endswith("_pre")}
    assert {"decoder", "low_level", "stage1", "stage2", "stage3", "stage4"} <= pairs.keys()
    for after, before in {**pairs, "backbone_post": "backbone"}.items():
        in_the_head = after in ("encoder", "decoder")
        joined = after == "encoder" and features[after] is features[before]  # HRNet's: maps side by side
        if joined or (linear and not in_the_head):
            assert features[after] is features[before]
        else:
            assert features[before].min() < 0
            assert torch.equal(features[after], F.relu(features[before]))
    assert features["backbone"] is features["stage4_pre"]
    assert features["low_level"] is features["stage1"]


@every_network
def test_the_bias_of_a_taps_norm_shifts_that_tap(case):
    model = case.build()
    expected = {"decoder_pre"}
    if model.config.backbone_config.model_type != "segkd-hrnet-backbone":  # whose maps are sums over several norms
        expected |= {"low_level_pre", "backbone", "stage1_pre", "stage2_pre", "stage3_pre", "stage4_pre"}
        expected |= {"encoder_pre"} & model.tap_channels.keys()
    assert model.tap_norms.keys() == expected
    with torch.no_grad():
        for tap, (weight, bias) in model.tap_norms.items():
            assert weight.shape == bias.shape == (model.tap_channels[tap],)
            assert not bias.requires_grad
            before = model(PIXELS, output_features=True).features[tap]
            bias += 1.0
            after = model(PIXELS, output_features=True).features[tap]
            bias -= 1.0
            torch.testing.assert_close(after, before + 1.0)


@every_network
def test_the_classifier_on_the_decoders_map_gives_the_logits_which_are_resized_once(case):
    for align_corners in (True, False):
        model = case.build(align_corners=align_corners)
        with torch.inference_mode():
            output = model(PIXELS, output_features=True)
            head = model.classifier(output.features["decoder"])
        torch.testing.assert_close(head, output.features["logits"])
        resized = F.interpolate(head, size=(65, 97), mode="bilinear", align_corners=align_corners)
        torch.testing.assert_close(resized, output.logits)


@every_network
def test_asking_for_taps_changes_neither_logits_nor_gradients(case):
    results = []
    for ask in (None, True):
        model = case.build().train()
        torch.manual_seed(1)
        output = model(PIXELS, LABELS, output_features=ask)
        output.loss.backward()
        results.append((output.logits, [p.grad for p in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@every_network
def test_the_loss_reaches_every_parameter(case):
    model = case.build().train()
    fill_weights(model)
    model(PIXELS, LABELS).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not 0 < p.grad.abs().max() < math.inf]
    assert without == []


@every_network
def test_the_taps_pass_gradients_on_to_every_parameter_before_them(case):
    model = case.build().train()
    fill_weights(model)
    features = model(PIXELS, output_features=True).features
    sum(tap.square().mean() for tap in features.values()).backward()
    missing = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert {name for name in missing if not name.startswith("auxiliary_head.")} == set()


@every_network
def test_the_loss_is_the_mean_cross_entropy_of_the_labelled_pixels(case):
    for ignore_index in (255, 7):
        labels = LABELS.where(LABELS != 255, ignore_index)
        model = case.build(semantic_loss_ignore_index=ignore_index)
        output = model(PIXELS, labels)
        expected = F.cross_entropy(output.logits.double(), labels, ignore_index=ignore_index)
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.equal(model(PIXELS, labels.byte()).loss, output.loss)


@every_network
def test_a_batch_without_a_labelled_pixel_costs_nothing_and_has_zero_gradients(case):
    model = case.build().train()
    loss = model(PIXELS, torch.full_like(LABELS, 255)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.abs().max() == 0 for p in model.parameters())


@every_network
def test_labels_that_do_not_fit_are_refused(case):
    model = case.build()
    with pytest.raises(ValueError, match=r"\(2, 65, 97\), got \(2, 17, 25\)"):
        model(PIXELS, LABELS[:, :17, :25])
    for label in (5, -1, 254):
        labels = LABELS.clone()
        labels[0, 30, 4] = label
        with pytest.raises(ValueError, match=rf"0 to 4 or 255 \(ignored\).*{label}"):
            model(PIXELS, labels)


@every_network
@pytest.mark.parametrize("pixels", [PIXELS[0], (PIXELS * 0).byte()], ids=["one image without batch", "uint8"])
def test_pixels_that_are_no_batch_of_floats_are_refused(case, pixels):
    with pytest.raises(ValueError, match="pixel_values must be normalised images"):
        case.build()(pixels)


@every_network
def test_the_same_images_give_the_same_bits_and_stay_as_they_are(case):
    pixels, labels = PIXELS.clone(), LABELS.clone()
    for training in (False, True):
        outputs = []
        for _ in range(2):
            model = case.build().train(training)
            torch.manual_seed(2)
            outputs.append(model(pixels, labels, output_features=True))
        assert torch.equal(outputs[0].logits, outputs[1].logits)
        assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert torch.equal(pixels, PIXELS)
    assert torch.equal(labels, LABELS)


@every_network
def test_hidden_states_and_tuples_come_when_asked_for_by_call_or_configuration(case):
    with torch.inference_mode():
        model = case.build()
        plain = model(PIXELS, LABELS)
        assert plain.hidden_states is None
        output = model(PIXELS, LABELS, output_hidden_states=True)
        as_tuple = model(PIXELS, LABELS, output_hidden_states=True, return_dict=False)
        by_config = case.build(output_hidden_states=True, return_dict=False)(PIXELS, LABELS)
    channels = [state.shape[1] for state in output.hidden_states]
    assert channels == model.backbone.num_features
    for loss, logits, hidden_states in (as_tuple, by_config):
        assert torch.equal(loss, plain.loss)
        assert torch.equal(logits, plain.logits)
        assert all(torch.equal(a, b) for a, b in zip(hidden_states, output.hidden_states, strict=True))


@every_network
def test_channels_last_bf16_autocast_and_bf16_weights_stay_close(case, tmp_path):
    model = case.build()
    fill_weights(model)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        expected = model(PIXELS).logits
        in_half = half(PIXELS.bfloat16(), LABELS)
        model = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = model(PIXELS, LABELS)
    assert in_half.logits.dtype == torch.bfloat16
    for output in (in_half, autocast):
        assert output.loss.dtype == torch.float32
        error = (output.logits.float() - expected).square().mean().sqrt()
        assert 0 < error < 0.2 * expected.std()


@every_network
def test_it_tells_trainer_fsdp_and_peft_what_they_ask(case):
    model = case.build()
    assert model.accepts_loss_kwargs is False
    assert model.config.keys_to_ignore_at_inference == ["features"]
    assert model.get_input_embeddings() is None
    assert model.base_model is model.backbone
    blocks = {type(module).__name__ for module in model.backbone.modules()}
    assert blocks & set(model._no_split_modules)
    for network in (model, model.backbone):
        with pytest.raises(ValueError, match=r"does not support (activation|gradient) checkpointing"):
            network.gradient_checkpointing_enable()


@the_others_slow("deeplabv3plus_resnet")
def test_compiled_as_one_graph_it_gives_the_same(case):
    torch._dynamo.reset()
    model = case.build().train()
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0

    def step(pixels, labels):
        output = model(pixels, labels, output_features=True)
        return output.loss, output.logits, output.features["backbone"]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(PIXELS, LABELS), step(PIXELS, LABELS), strict=True):
        torch.testing.assert_close(actual, expected)


@the_others_slow("deeplabv3plus_resnet", "pspnet")
def test_exported_with_dynamic_shapes_it_gives_the_same_at_another_size(case):
    network = DenseNetwork(case.build())
    exported = trace(network, PIXELS.shape[-2:], dynamic=True).module()
    with torch.inference_mode():
        for size in ((99, 133), (64, 64)):
            pixels = torch.rand(3, 3, *size)
            torch.testing.assert_close(exported(pixels), network(pixels))
