import pytest
import torch
from tiny_networks import tiny_model

from hf_segkd.models import convert_attnfd_state_dict
from hf_segkd.models.convert_checkpoint import HEAD_PREFIXES

OURS_TO_THEIRS = {ours: theirs for theirs, ours in HEAD_PREFIXES.items()}
FLAT_PLACE = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
FLAT_PLACE_OF_FIRST_BLOCK = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}


def authors_state_dict(model):
    """The model's weights under the authors' names, with the extra entries their checkpoints have."""
    theirs = {}
    for name, tensor in model.state_dict().items():
        prefix, _, suffix = name.rpartition(".")
        if prefix in OURS_TO_THEIRS:
            name = f"{OURS_TO_THEIRS[prefix]}.{suffix}"
        elif ".conv." in prefix:
            _, _, block, _, place = prefix.split(".", 4)
            flat = (FLAT_PLACE_OF_FIRST_BLOCK if block == "1" else FLAT_PLACE)[place]
            name = f"backbone.features.{block}.conv.{flat}.{suffix}"
        theirs[name] = tensor
        if name.startswith("backbone.features."):
            half = "low" if int(name.split(".")[2]) < 4 else "high"
            theirs[name.replace("features", f"{half}_level_features", 1)] = tensor
    for part in ("backbone", "aspp", "decoder"):
        theirs[f"{part}.cbam.ChannelGate.mlp.1.weight"] = torch.zeros(1)
        theirs[f"{part}.cbam.SpatialGate.spatial.conv.weight"] = torch.zeros(1)
    return theirs


@pytest.mark.parametrize("kind", ["resnet", "bottleneck", "mobilenet_v2"])
def test_every_weight_arrives_and_extras_are_left_out(kind):
    model = tiny_model(kind)
    converted = convert_attnfd_state_dict(authors_state_dict(model))
    expected = model.state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "name",
    [
        "module.backbone.conv1.weight",
        "decoder.last_conv.2.weight",
        "backbone.features.1.conv.6.weight",
        "backbone.fc.weight",
        "epoch",
    ],
)
def test_a_name_the_authors_do_not_use_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        convert_attnfd_state_dict({name: torch.zeros(1)})
