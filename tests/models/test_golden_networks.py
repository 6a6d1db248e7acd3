"""Against numbers of mmsegmentation 1.2.2 and of the AttnFD authors' code at f090bbe, in evaluation mode."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hashed_numbers import hashed
from tiny_networks import fill_weights
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from hf_segkd.models import (
    DeepLabV3PlusConfig,
    DeepLabV3PlusForSemanticSegmentation,
    convert_attnfd_state_dict,
    convert_mmseg_state_dict,
)

ATTNFD_MOBILENET = {"backbone": "mobilenet_v2", "pad_before_expansion": True, "late_dilation": True}
NETWORKS = {
    "attnfd_resnet18": ("segkd-deeplabv3plus", {"backbone": "resnet18"}),
    "attnfd_resnet101": ("segkd-deeplabv3plus", {"backbone": "resnet101"}),
    "attnfd_mobilenet": ("segkd-deeplabv3plus", ATTNFD_MOBILENET),
    "dlv3p_mv2": ("segkd-deeplabv3plus", {"backbone": "mobilenet_v2", "layout": "mmsegmentation"}),
    "dlv3p_r101": ("segkd-deeplabv3plus", {"backbone": "resnet101", "layout": "mmsegmentation"}),
    "hrnet_w18s": ("segkd-hrnet", {"backbone": "hrnet_w18_small"}),
    "hrnet_w48": ("segkd-hrnet", {"backbone": "hrnet_w48"}),
    "isanet_r18": ("segkd-isanet", {"backbone": "resnet18"}),
    "isanet_r101": ("segkd-isanet", {"backbone": "resnet101"}),
    "pspnet_r18": ("segkd-pspnet", {"backbone": "resnet18"}),
    "pspnet_r101": ("segkd-pspnet", {"backbone": "resnet101"}),
}
# Of networks with the weights of `fill_weights`, in float64: shape, mean and root mean square of each tap, and its
# values at the flat indices floor(j * (n - 1) / 7), j = 0..7. AttnFD's logits are those at the image's size.
TAPS = json.loads(Path(__file__).with_name("golden_taps.json").read_text())


def reference_network(file):
    """Of a network outside the repository: the module that makes its weights and images, facts, and logits.

    Skips the test where they are missing.
    """
    root = Path(__file__).parents[2]
    folder = (root / os.environ.get("HF_SEGKD_SHARED", "../shared")).resolve() / "golden" / "networks"
    if not (folder / f"{file}.json").is_file():
        pytest.skip(f"no {file}.json in {folder}; HF_SEGKD_SHARED names the folder that holds golden/")
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe, json.loads((folder / f"{file}.json").read_text()), np.load(folder / f"{file}.npz")


def network(file, num_labels):
    model_type, kwargs = NETWORKS[file]
    config = AutoConfig.for_model(model_type, num_labels=num_labels, **kwargs)
    return AutoModelForSemanticSegmentation.from_config(config).eval()


def maps(file, model, image):
    with torch.inference_mode():
        output = model(image, output_features=True)
        found = {**output.features, "aux": model.auxiliary_head and model.auxiliary_head(output.features["stage3"])}
    return {**found, "logits": output.logits} if file.startswith("attnfd") else found


@pytest.mark.parametrize(
    ("file", "size"),
    [("attnfd_resnet18", (321, 289)), ("attnfd_mobilenet", (321, 289)), ("hrnet_w18s", (97, 129))],
)
def test_every_tap_equals_the_original_networks_in_float64(file, size):
    model = network(file, TAPS[file]["logits"]["shape"][1]).double()
    fill_weights(model)
    found = maps(file, model, hashed((1, 3, *size), 61, 4.0))
    for tap, golden in TAPS[file].items():
        flat = found[tap].flatten()
        probes = [j * (flat.numel() - 1) // 7 for j in range(8)]
        assert list(found[tap].shape) == golden["shape"]
        actual = [flat.mean().item(), flat.square().mean().sqrt().item(), *flat[probes].tolist()]
        assert actual == pytest.approx([golden["mean"], golden["rms"], *golden["values"]], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("file", NETWORKS)
def test_a_converted_checkpoint_gives_the_logits_of_the_original(file):
    recipe, reference, golden = reference_network(file)
    convert = convert_attnfd_state_dict if file.startswith("attnfd") else convert_mmseg_state_dict
    model = network(file, reference["num_labels"])
    model.load_state_dict(convert(recipe.state_dict(reference["keys"])))
    assert model.num_parameters() == reference["params_without_cbam"]
    for key, stride in reference["logits_stride"].items():
        found = maps(file, model, recipe.image(tuple(map(int, key.split("x")))))
        # The auxiliary logits are kept at every second pixel for the large image alone.
        strides = {"logits": stride, "aux": 2 if key == "1x3x321x353" else 1}
        for name in {array.split("_")[0] for array in golden}:
            logits = found[name][..., :: strides[name], :: strides[name]]
            expected = torch.from_numpy(golden[f"{name}_{key}"])
            assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


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
