"""Against numbers of mmsegmentation 1.2.2's FCN-HRNet, in evaluation mode."""

import pytest
import torch
from golden_networks import reference_network
from tiny_networks import fill_weights, hashed

from hf_segkd.models import HRNetConfig, HRNetForSemanticSegmentation, convert_mmseg_hrnet_state_dict

# W18-small of mmsegmentation with the weights of `fill_weights`, in float64: shape, mean, root mean square, and the
# values at the flat indices floor(j * (n - 1) / 7), j = 0..7.
GOLDEN = {
    "stage1": (
        (1, 18, 25, 33),
        362.960450254,
        706.388240559,
        [177.025773098, 837.264456773, 880.098525701, 0, 437.385254639, 0, 2077.47413049, 71.6442234048],
    ),
    "stage2": (
        (1, 36, 13, 17),
        523.787838316,
        826.807358584,
        [191.185567529, 929.758332292, 309.173488279, 149.084294479, 1835.02192484, 0, 208.957706974, 307.438711355],
    ),
    "stage3": (
        (1, 72, 7, 9),
        398.318726969,
        671.22550296,
        [1.32861714705, 652.798680101, 38.4717386291, 0, 0, 204.723005245, 139.583069277, 177.772310086],
    ),
    "stage4": (
        (1, 144, 4, 5),
        284.998304396,
        507.708132809,
        [0, 824.038367782, 667.892061709, 0, 0, 614.540193048, 0, 0],
    ),
    "encoder": (
        (1, 270, 25, 33),
        352.378991596,
        605.355434468,
        [177.025773098, 1709.67253181, 504.39060907, 454.198658195, 200.753526359, 109.341697132, 6.27973614035, 0],
    ),
    "decoder": (
        (1, 270, 25, 33),
        225.280732305,
        410.718556534,
        [220.769017333, 1511.73889253, 56.9379409211, 896.919209618, 0, 0, 0, 483.75337773],
    ),
    "logits": (
        (1, 19, 25, 33),
        -10.5778151813,
        400.086715317,
        [
            -129.078466287,
            84.4492753929,
            -257.689335788,
            -197.242190401,
            -82.9195878933,
            137.393288379,
            -175.176636122,
            171.073194933,
        ],
    ),
}


def test_every_tap_equals_mmsegmentations_network_in_float64():
    model = HRNetForSemanticSegmentation(HRNetConfig(num_labels=19)).double().eval()
    fill_weights(model)
    with torch.inference_mode():
        features = model(hashed((1, 3, 97, 129), 61, 4.0), output_features=True).features
    for tap, (shape, mean, rms, values) in GOLDEN.items():
        flat = features[tap].flatten()
        probes = [j * (flat.numel() - 1) // 7 for j in range(8)]
        assert tuple(features[tap].shape) == shape
        assert flat.mean().item() == pytest.approx(mean, rel=1e-9)
        assert flat.square().mean().sqrt().item() == pytest.approx(rms, rel=1e-9)
        assert flat[probes].tolist() == pytest.approx(values, rel=1e-9)


@pytest.mark.parametrize(("file", "name"), [("hrnet_w18s", "hrnet_w18_small"), ("hrnet_w48", "hrnet_w48")])
def test_converted_checkpoint_gives_mmsegmentations_logits(file, name):
    recipe, reference, golden = reference_network(file)
    model = HRNetForSemanticSegmentation(HRNetConfig(backbone=name, num_labels=reference["num_labels"])).eval()
    model.load_state_dict(convert_mmseg_hrnet_state_dict(recipe.state_dict(reference["keys"])))
    assert model.num_parameters() == reference["params"]
    for key, stride in reference["logits_stride"].items():
        image = recipe.image(tuple(int(side) for side in key.split("x")))
        with torch.inference_mode():
            logits = model(image, output_features=True).features["logits"][:, :, ::stride, ::stride]
        expected = torch.from_numpy(golden[f"logits_{key}"])
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "name",
    ["module.backbone.conv1.weight", "backbone.incre_modules.0.0.conv1.weight", "decode_head.convs.1.conv.weight"],
)
def test_a_name_that_network_does_not_have_is_an_error(name):
    with pytest.raises(ValueError, match=name):
        convert_mmseg_hrnet_state_dict({name: torch.zeros(1)})
