"""Against numbers of the AttnFD authors' code (github.com/AmirMansurian/AttnFD at f090bbe), in evaluation mode."""

import pytest
import torch
from golden_networks import reference_network
from tiny_networks import fill_weights, hashed

from hf_segkd.models import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation
from hf_segkd.models.convert_checkpoint import convert_attnfd_state_dict

AS_IN_ATTNFD = {
    "resnet18": {"backbone": "resnet18"},
    "resnet101": {"backbone": "resnet101"},
    "mobilenet_v2": {"backbone": "mobilenet_v2", "pad_before_expansion": True, "late_dilation": True},
}
# Shape, mean, root mean square, and the values at the flat indices floor(j * (n - 1) / 7), j = 0..7.
GOLDEN = {
    "resnet18": {
        "low_level": (
            (1, 64, 81, 73),
            2.49643316818,
            3.54404736034,
            [1.04563459244, 3.83336733495, 2.84118013114, 0.745955924256, 0.0, 5.48351339754, 3.48297724072, 0.0],
        ),
        "backbone": (
            (1, 512, 21, 19),
            2.83504321712,
            6.17312151654,
            [
                -1.61002442395,
                -1.21155444846,
                3.76489290799,
                3.44312281194,
                2.47917437057,
                0.991965701393,
                7.67935704222,
                1.56502868552,
            ],
        ),
        "encoder": (
            (1, 256, 21, 19),
            1.44469854337,
            2.54902947811,
            [2.01904203548, 0.0, 0.794681639441, 3.17661856169, 2.40071123539, 1.47872900291, 0.0, 1.34009866012],
        ),
        "decoder": (
            (1, 256, 81, 73),
            0.641049037983,
            1.17803276391,
            [0.0, 0.0, 0.862461118303, 0.629281924039, 0.0, 1.54220909204, 0.0, 0.0],
        ),
        "logits": (
            (1, 21, 321, 289),
            0.191873293163,
            0.937333988026,
            [
                -0.968742051358,
                -0.241181963867,
                0.22045145023,
                0.0374568486755,
                -0.149956720024,
                0.496422432689,
                -0.433540527946,
                -0.539095048569,
            ],
        ),
    },
    "mobilenet_v2": {
        "low_level": (
            (1, 24, 81, 73),
            0.171358734902,
            0.641823353944,
            [
                -0.237384909365,
                0.289910036134,
                -0.22590767502,
                0.089457052275,
                -0.262003782911,
                -0.0765459669572,
                0.406318619449,
                -0.0548139816339,
            ],
        ),
        "backbone": (
            (1, 320, 21, 19),
            0.0655851019396,
            0.813303149142,
            [
                0.3871566344,
                -0.9605837124,
                -0.833911255595,
                0.178979479849,
                0.448848678556,
                -0.622349897931,
                -1.16175213718,
                0.838228160592,
            ],
        ),
        "encoder": (
            (1, 256, 21, 19),
            0.22168147222,
            0.383620248268,
            [0.134044092357, 0.0, 0.0, 1.10146196451, 0.665419804261, 0.680283935948, 0.0, 0.0],
        ),
        "decoder": (
            (1, 256, 81, 73),
            0.132393181646,
            0.229800614787,
            [0.1138578388, 0.0, 0.0, 0.47682789658, 0.0, 0.0, 0.36558930249, 0.0721754721494],
        ),
        "logits": (
            (1, 21, 321, 289),
            0.0140698309532,
            0.207131318906,
            [
                0.120478112807,
                0.0398951795601,
                -0.0190381423621,
                -0.0280781965333,
                0.0100680563832,
                0.0576255052149,
                0.0641612638972,
                -0.0868986559555,
            ],
        ),
    },
}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_tap_equals_the_authors_network_in_float64(name):
    model = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(num_labels=21, **AS_IN_ATTNFD[name]))
    model = model.double().eval()
    fill_weights(model)
    with torch.inference_mode():
        output = model(hashed((1, 3, 321, 289), 61, 4.0), output_features=True)
    maps = {**output.features, "logits": output.logits}
    for tap, (shape, mean, rms, values) in GOLDEN[name].items():
        flat = maps[tap].flatten()
        probes = [j * (flat.numel() - 1) // 7 for j in range(8)]
        assert tuple(maps[tap].shape) == shape
        assert flat.mean().item() == pytest.approx(mean, abs=1e-9)
        assert flat.square().mean().sqrt().item() == pytest.approx(rms, abs=1e-9)
        assert flat[probes].tolist() == pytest.approx(values, abs=1e-9)


@pytest.mark.parametrize("option", ["pad_before_expansion", "late_dilation"])
def test_each_mobilenet_quirk_changes_the_numbers(option):
    torch.manual_seed(0)
    shape = {"backbone": "mobilenet_v2", "depth_multiplier": 0.25, "aspp_channels": 8, "decoder_channels": 8}
    plain = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(**shape)).eval()
    quirky = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(**shape, **{option: True})).eval()
    fill_weights(plain)
    quirky.load_state_dict(plain.state_dict())
    image = hashed((1, 3, 97, 97), 3, 4.0).float()
    with torch.inference_mode():
        assert not torch.allclose(plain(image).logits, quirky(image).logits, rtol=1e-3)


@pytest.mark.parametrize(
    ("file", "name"),
    [("attnfd_resnet18", "resnet18"), ("attnfd_resnet101", "resnet101"), ("attnfd_mobilenet", "mobilenet_v2")],
)
def test_converted_checkpoint_gives_the_authors_logits(file, name):
    recipe, reference, golden = reference_network(file)
    config = DeepLabV3PlusConfig(num_labels=reference["num_labels"], **AS_IN_ATTNFD[name])
    model = DeepLabV3PlusForSemanticSegmentation(config).eval()
    model.load_state_dict(convert_attnfd_state_dict(recipe.state_dict(reference["keys"])))
    assert model.num_parameters() == reference["params_without_cbam"]
    for key, stride in reference["logits_stride"].items():
        image = recipe.image(tuple(int(side) for side in key.split("x")))
        with torch.inference_mode():
            logits = model(image).logits[:, :, ::stride, ::stride]
        expected = torch.from_numpy(golden[f"logits_{key}"])
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
