"""Against numbers of mmsegmentation 1.2.2's FCN-HRNet, in evaluation mode."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_segkd.models import HRNetConfig, HRNetForSemanticSegmentation, convert_mmseg_hrnet_state_dict


def reference_folder() -> Path:
    root = Path(__file__).parents[2]
    return (root / os.environ.get("HF_SEGKD_SHARED", "../shared")).resolve() / "golden" / "networks"


@pytest.mark.parametrize(("file", "name"), [("hrnet_w18s", "hrnet_w18_small"), ("hrnet_w48", "hrnet_w48")])
def test_converted_checkpoint_gives_mmsegmentations_logits(file, name):
    folder = reference_folder()
    if not (folder / f"{file}.json").is_file():
        pytest.skip(f"no {file}.json in {folder}; HF_SEGKD_SHARED names the folder that holds golden/")
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    reference = json.loads((folder / f"{file}.json").read_text())
    model = HRNetForSemanticSegmentation(HRNetConfig(backbone=name, num_labels=reference["num_labels"])).eval()
    model.load_state_dict(convert_mmseg_hrnet_state_dict(recipe.state_dict(reference["keys"])))
    assert model.num_parameters() == reference["params"]
    golden = np.load(folder / f"{file}.npz")
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
