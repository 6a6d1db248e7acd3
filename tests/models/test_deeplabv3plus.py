import socket

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import HEAD, TINY, tiny_model

from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation

PIXELS = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 4 - 2
LABELS = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
KINDS = pytest.mark.parametrize("kind", TINY)


@pytest.mark.parametrize(
    ("backbone", "parameters"), [("resnet101", 59_344_309), ("resnet18", 16_608_181), ("mobilenet_v2", 5_816_053)]
)
def test_parameter_counts_are_the_papers(backbone, parameters):
    with torch.device("meta"):
        model = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(backbone=backbone, num_labels=21))
    assert model.num_parameters() == parameters


@KINDS
def test_features_are_there_on_request_with_the_announced_channels(kind):
    model = tiny_model(kind)
    with torch.inference_mode():
        assert model(PIXELS).features is None
        output = model(PIXELS, output_features=True)
    assert {name: tap.shape[1] for name, tap in output.features.items()} == model.tap_channels
    assert output.logits.shape == (2, 5, 65, 97)
    assert output.features["decoder"].shape[-2:] == output.features["logits"].shape[-2:] == (17, 25)
    assert output.features["low_level"].shape[-2:] == (17, 25)
    stride_of_last = 16 if kind != "bottleneck" else 32
    assert output.features["encoder"].shape[-2] == -(-65 // stride_of_last)


@KINDS
def test_each_tap_and_its_other_side_differ_by_the_activation(kind):
    model = tiny_model(kind).train()
    features = model(PIXELS, output_features=True).features
    relu = F.relu if kind != "mobilenet_v2" else lambda x: x  # its bottlenecks are linear
    assert torch.equal(features["low_level"], relu(features["low_level_pre"]))
    assert torch.equal(features["backbone_post"], relu(features["backbone"]))
    assert torch.equal(features["encoder"], F.relu(features["encoder_pre"]))
    assert torch.equal(features["decoder"], F.relu(features["decoder_pre"]))
    for stage in ("stage1", "stage2", "stage3", "stage4"):
        assert torch.equal(features[stage], relu(features[f"{stage}_pre"]))
        assert features[f"{stage}_pre"].min() < 0
    assert all(features[name].min() < 0 for name in ("backbone", "encoder_pre", "decoder_pre"))


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


@KINDS
def test_the_bias_of_a_taps_norm_shifts_that_tap(kind):
    model = tiny_model(kind)
    stages = {f"stage{i}_pre" for i in (1, 2, 3, 4)}
    assert model.tap_norms.keys() == stages | {"low_level_pre", "backbone", "encoder_pre", "decoder_pre"}
    with torch.no_grad():
        for tap, (weight, bias) in model.tap_norms.items():
            assert weight.shape == bias.shape == (model.tap_channels[tap],)
            assert not bias.requires_grad
            before = model(PIXELS, output_features=True).features[tap]
            bias += 1.0
            after = model(PIXELS, output_features=True).features[tap]
            bias -= 1.0
            torch.testing.assert_close(after, before + 1.0)


def test_taps_at_other_ends_of_the_backbone_have_no_norm_of_their_own():
    own = {"model_type": "segkd-mobilenet-v2", "depth_multiplier": 0.25, "out_features": ["stage1", "stage6"]}
    assert {"low_level_pre", "backbone"}.isdisjoint(tiny_model(backbone_config=own).tap_norms)


@KINDS
def test_asking_for_features_changes_neither_logits_nor_gradients(kind):
    results = []
    for ask in (None, True):
        model = tiny_model(kind).train()
        torch.manual_seed(1)
        output = model(PIXELS, LABELS, output_features=ask)
        output.loss.backward()
        results.append((output.logits, [p.grad for p in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@KINDS
def test_classifier_on_the_decoder_tap_gives_the_logits_which_are_resized_once(kind):
    model = tiny_model(kind)
    with torch.inference_mode():
        output = model(PIXELS, output_features=True)
        head = model.classifier(output.features["decoder"])
    torch.testing.assert_close(head, output.features["logits"])
    resized = F.interpolate(head, size=(65, 97), mode="bilinear", align_corners=True)
    torch.testing.assert_close(resized, output.logits)


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


def test_taps_receive_gradients():
    model = tiny_model().train()
    features = model(PIXELS, output_features=True).features
    sum(tap.square().mean() for tap in features.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_loss_is_the_mean_cross_entropy_of_the_labelled_pixels():
    labels = LABELS.clone()
    labels[:, :20] = 255
    output = tiny_model()(PIXELS, labels)
    expected = F.cross_entropy(output.logits.double(), labels, ignore_index=255)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_uint8_labels_give_the_same_loss():
    model = tiny_model()
    assert torch.equal(model(PIXELS, LABELS.byte()).loss, model(PIXELS, LABELS).loss)


def test_a_batch_without_a_labelled_pixel_costs_nothing_and_has_zero_gradients():
    model = tiny_model().train()
    loss = model(PIXELS, torch.full_like(LABELS, 255)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.abs().max() == 0 for p in model.parameters())


@pytest.mark.parametrize("label", [5, -1, 254])
def test_a_label_out_of_range_is_a_clear_error_on_a_cpu(label):
    labels = LABELS.clone()
    labels[0, 3, 4] = label
    with pytest.raises(ValueError, match=rf"0 to 4 or 255 \(ignored\).*{label}"):
        tiny_model()(PIXELS, labels)


def test_labels_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 65, 97\), got \(2, 17, 25\)"):
        tiny_model()(PIXELS, LABELS[:, :17, :25])


@KINDS
def test_one_image_works_in_evaluation_and_is_refused_in_training(kind):
    model = tiny_model(kind)
    with torch.inference_mode():
        assert torch.isfinite(model(PIXELS[:1]).logits).all()
    with pytest.raises(ValueError, match="batch of one image"):
        model.train()(PIXELS[:1])


@KINDS
@pytest.mark.parametrize("size", [(33, 47), (64, 64), (70, 131)])
def test_any_size_gives_logits_of_that_size(kind, size):
    with torch.inference_mode():
        assert tiny_model(kind)(torch.rand(1, 3, *size)).logits.shape[-2:] == size


@KINDS
def test_channels_last_and_bf16_autocast_stay_close(kind):
    model = tiny_model(kind)
    with torch.inference_mode():
        expected = model(PIXELS).logits
        model = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(PIXELS).logits, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low_precision = model(PIXELS, LABELS)
    assert low_precision.loss.dtype == torch.float32
    error = (low_precision.logits - expected).square().mean().sqrt()
    assert 0 < error < 0.2 * expected.std()


@KINDS
def test_save_and_load_gives_identical_logits_without_a_network_connection(kind, tmp_path, monkeypatch):
    model = tiny_model(kind)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.add_(torch.rand_like(norm.running_mean))
    model.save_pretrained(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    again, info = DeepLabV3PlusForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    with torch.inference_mode():
        assert torch.equal(again(PIXELS).logits, model(PIXELS).logits)


def test_no_buffer_is_left_out_of_the_checkpoint():
    for kind in TINY:
        model = tiny_model(kind)
        assert {name for name, _ in model.named_buffers()} <= model.state_dict().keys()


def test_another_number_of_labels_re_initialises_the_classifier_alone(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = DeepLabV3PlusForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    ).eval()
    assert model.classifier.weight.shape[0] == 7
    assert 0 < model.classifier.weight.std() < 2
    assert model.classifier.bias.abs().max() <= 8**-0.5
    assert torch.equal(model.aspp.project.conv.weight, tiny_model().aspp.project.conv.weight)


@pytest.mark.parametrize("kind", ["resnet", "mobilenet_v2"])
def test_compiled_as_one_graph_it_gives_the_same(kind):
    torch._dynamo.reset()
    model = tiny_model(kind)

    def step(pixels, labels):
        output = model(pixels, labels, output_features=True)
        return output.loss, output.logits, output.features["backbone"]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        for actual, expected in zip(compiled(PIXELS, LABELS), step(PIXELS, LABELS), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kind", ["resnet", "mobilenet_v2"])
def test_exported_with_dynamic_shapes_it_gives_the_same_at_another_size(kind):
    model = tiny_model(kind)
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


def test_it_tells_trainer_and_fsdp_what_they_ask():
    model = tiny_model()
    assert model.accepts_loss_kwargs is False
    assert model.config.keys_to_ignore_at_inference == ["features"]
    assert model.get_input_embeddings() is None
    assert model.base_model is model.backbone
    with pytest.raises(ValueError, match=r"does not support (activation|gradient) checkpointing"):
        model.gradient_checkpointing_enable()


def test_heads_start_with_kaiming_normal_weights():
    torch.manual_seed(0)
    model = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig())
    weight = model.aspp.branches[1].conv.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert model.decoder.fuse.norm.weight.eq(1).all()
