"""Against numbers of mmsegmentation 1.2.2 in evaluation mode, through the converter of its checkpoints."""

import pytest
import torch
from golden_networks import reference_network

from hf_segkd.models import (
    DeepLabV3PlusConfig,
    DeepLabV3PlusForSemanticSegmentation,
    ISANetConfig,
    ISANetForSemanticSegmentation,
    PSPNetConfig,
    PSPNetForSemanticSegmentation,
    convert_mmseg_state_dict,
)

DEEPLABV3PLUS = (DeepLabV3PlusForSemanticSegmentation, DeepLabV3PlusConfig)
ISANET = (ISANetForSemanticSegmentation, ISANetConfig)
PSPNET = (PSPNetForSemanticSegmentation, PSPNetConfig)
CASES = {
    "pspnet_r18": (*PSPNET, {"backbone": "resnet18"}),
    "pspnet_r101": (*PSPNET, {"backbone": "resnet101"}),
    "isanet_r18": (*ISANET, {"backbone": "resnet18"}),
    "isanet_r101": (*ISANET, {"backbone": "resnet101"}),
    "dlv3p_mv2": (*DEEPLABV3PLUS, {"backbone": "mobilenet_v2", "layout": "mmsegmentation"}),
    "dlv3p_r101": (*DEEPLABV3PLUS, {"backbone": "resnet101", "layout": "mmsegmentation"}),
}


@pytest.mark.parametrize("file", CASES)
def test_converted_checkpoint_gives_the_logits_of_both_heads(file):
    recipe, reference, golden = reference_network(file)
    model_class, config_class, kwargs = CASES[file]
    model = model_class(config_class(num_labels=reference["num_labels"], **kwargs)).eval()
    model.load_state_dict(convert_mmseg_state_dict(recipe.state_dict(reference["keys"])))
    assert model.num_parameters() == reference["params"]
    for key, stride in reference["logits_stride"].items():
        with torch.inference_mode():
            features = model(recipe.image(tuple(map(int, key.split("x")))), output_features=True).features
            auxiliary = model.auxiliary_head(features["stage3"])
        expected = {name: torch.from_numpy(golden[f"{name}_{key}"]) for name in ("logits", "aux")}
        # The auxiliary logits are kept at every second pixel for the large image alone.
        every = 2 if key == "1x3x321x353" else 1
        actual = {"logits": features["logits"][..., ::stride, ::stride], "aux": auxiliary[..., ::every, ::every]}
        for name, logits in actual.items():
            assert (logits - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max()
