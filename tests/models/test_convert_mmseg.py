import pytest
import torch
from tiny_mmseg_networks import NETWORKS, tiny_network

from hf_segkd.models import convert_mmseg_hrnet_state_dict, convert_mmseg_state_dict

# Prefix here -> prefix in mmsegmentation, spelt out for the small networks.
SEPARABLE = {"depthwise": "depthwise_conv", "pointwise": "pointwise_conv"}
THEIRS = {
    "pspnet": {
        **{f"head.branches.{i}": f"decode_head.psp_modules.{i}.1" for i in range(4)},
        "head.project": "decode_head.bottleneck",
    },
    "isanet": {
        "head.reduce": "decode_head.in_conv",
        "head.project": "decode_head.out_conv",
        **{
            f"head.{reach}_attention.{ours}": f"decode_head.{reach}_relation.{theirs}"
            for reach in ("global", "local")
            for ours, theirs in {
                "query.0": "query_project.0",
                "query.1": "query_project.1",
                "key.0": "key_project.0",
                "key.1": "key_project.1",
                "value": "value_project",
                "output": "output_project",
            }.items()
        },
    },
    "deeplabv3plus": {
        "aspp.branches.0": "decode_head.aspp_modules.0",
        "aspp.image_branch": "decode_head.image_pool.1",
        "aspp.project": "decode_head.bottleneck",
        "decoder.low_level": "decode_head.c1_bottleneck",
        **{
            f"{ours}.{part}": f"decode_head.{theirs}.{SEPARABLE[part]}"
            for part in SEPARABLE
            for ours, theirs in {
                "aspp.branches.1": "aspp_modules.1",
                "aspp.branches.2": "aspp_modules.2",
                "aspp.branches.3": "aspp_modules.3",
                "decoder.fuse": "sep_bottleneck.0",
                "decoder.refine": "sep_bottleneck.1",
            }.items()
        },
    },
}
BOTH_HEADS = {
    "classifier": "decode_head.conv_seg",
    "auxiliary_head.conv": "auxiliary_head.convs.0",
    "auxiliary_head.classifier": "auxiliary_head.conv_seg",
}


def mmseg_state_dict(kind, model):
    """The model's weights under mmsegmentation's names, for a ResNet."""
    prefixes = {**THEIRS[kind], **BOTH_HEADS}
    theirs = {}
    for name, tensor in model.state_dict().items():
        if name == "aspp.project.conv.weight":
            tensor = tensor.roll(tensor.shape[1] // 5, dims=1)  # the image-level branch comes first there
        ours = max((prefix for prefix in prefixes if name.startswith(f"{prefix}.")), key=len, default=None)
        if ours is not None:
            name = f"{prefixes[ours]}{name.removeprefix(ours)}".replace(".norm.", ".bn.")
        theirs[name] = tensor
    return theirs


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_weight_arrives_under_its_name(kind):
    model = tiny_network(kind)
    theirs = mmseg_state_dict(kind, model)
    assert not any(name.startswith(("head.", "aspp.", "decoder.", "classifier.")) for name in theirs)
    converted, expected = convert_mmseg_state_dict(theirs), model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.conv1.conv.weight", "backbone.features.0.0.weight"),
        ("backbone.conv1.bn.running_var", "backbone.features.0.1.running_var"),
        ("backbone.layer1.0.conv.0.bn.bias", "backbone.features.1.conv.0.1.bias"),
        ("backbone.layer1.0.conv.1.conv.weight", "backbone.features.1.conv.1.weight"),
        ("backbone.layer1.0.conv.1.bn.weight", "backbone.features.1.conv.2.weight"),
        ("backbone.layer2.1.conv.0.conv.weight", "backbone.features.3.conv.0.0.weight"),
        ("backbone.layer3.2.conv.1.bn.running_mean", "backbone.features.6.conv.1.1.running_mean"),
        ("backbone.layer7.0.conv.2.conv.weight", "backbone.features.17.conv.2.weight"),
        ("backbone.layer7.0.conv.2.bn.weight", "backbone.features.17.conv.3.weight"),
    ],
)
def test_a_mobilenets_layers_are_counted_over_all_stages(theirs, ours):
    beside = "decode_head.bottleneck.conv.weight"
    mark = "decode_head.psp_modules.0.1.conv.weight"
    converted = convert_mmseg_state_dict({theirs: torch.zeros(1), beside: torch.zeros(1), mark: torch.zeros(1)})
    assert ours in converted
    names = tiny_network("pspnet", backbone_config=None, backbone="mobilenet_v2").state_dict()
    assert ours in names


def test_hrnet_is_recognised_too():
    weights = {
        "decode_head.convs.0.conv.weight": torch.zeros(1),
        "backbone.stage2.0.branches.0.0.conv1.weight": torch.zeros(1),
    }
    assert set(convert_mmseg_state_dict(weights)) == {
        "decoder.conv.weight",
        "backbone.stage2.0.branches.0.0.conv1.weight",
    }


@pytest.mark.parametrize(
    "name", ["decode_head.bottleneck.gn.weight", "decode_head.sep.conv.weight", "backbone.fc.weight", "epoch"]
)
def test_a_name_the_network_does_not_have_is_an_error(name):
    mark = "decode_head.psp_modules.0.1.conv.weight"
    with pytest.raises(ValueError, match=name):
        convert_mmseg_state_dict({mark: torch.zeros(1), name: torch.zeros(1)})


@pytest.mark.parametrize(
    "name",
    ["module.backbone.conv1.weight", "backbone.incre_modules.0.0.conv1.weight", "decode_head.convs.1.conv.weight"],
)
def test_a_name_that_hrnet_does_not_have_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        convert_mmseg_hrnet_state_dict({name: torch.zeros(1)})


def test_another_head_is_refused():
    with pytest.raises(ValueError, match="PSPNet, ISANet or DeepLabV3"):
        convert_mmseg_state_dict({"decode_head.lateral_convs.0.conv.weight": torch.zeros(1)})
