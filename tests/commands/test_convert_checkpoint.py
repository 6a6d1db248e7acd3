import json

import numpy as np
import pytest
import torch
from test_convert_deeplabv3plus import authors_state_dict
from test_convert_mmseg import mmseg_state_dict
from tiny_mmseg_networks import TINY_BACKBONE, TINY_HEAD, tiny_network
from tiny_networks import HEAD, TINY, tiny_model

from hf_segkd.commands.convert_checkpoint import main
from hf_segkd.networks.loading import load_network

PSPNET = {"model_type": "segkd-pspnet", "backbone_config": TINY_BACKBONE, **TINY_HEAD}


def convert(tmp_path, content, source, network_config):
    torch.save(content, tmp_path / "checkpoint.pth")
    flags = {"checkpoint": tmp_path / "checkpoint.pth", "source": source, "output": tmp_path / "out"}
    flags["network_config"] = json.dumps(network_config)
    return main([text for flag, value in flags.items() for text in (f"--{flag}", str(value))])


def assert_same_weights(folder, expected):
    model, processor = load_network(str(folder))
    assert type(model) is type(expected)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.state_dict().items())
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406)


def test_a_checkpoint_of_mmsegmentation_becomes_a_folder_with_network_and_processor(tmp_path):
    model = tiny_network("pspnet")
    network_config = {key: value for key, value in PSPNET.items() if key != "num_labels"}
    content = {"meta": {"epoch": 1}, "state_dict": mmseg_state_dict("pspnet", model)}
    assert_same_weights(convert(tmp_path, content, "mmsegmentation", network_config), model)


def test_a_checkpoint_of_attnfd_loads_with_the_numpy_number_in_it(tmp_path):
    model = tiny_model()
    content = {"best_pred": np.float64(0.5), "state_dict": authors_state_dict(model)}
    assert_same_weights(convert(tmp_path, content, "attnfd", {**HEAD, **TINY["resnet"]}), model)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without running code from it: .*print"):
        convert(tmp_path, {"state_dict": {}, "hook": print}, "mmsegmentation", PSPNET)


def test_a_network_of_another_shape_is_refused_and_nothing_is_written(tmp_path):
    content = {"state_dict": mmseg_state_dict("pspnet", tiny_network("pspnet"))}
    with pytest.raises(ValueError, match=r"does not fit network_config.*size mismatch for head"):
        convert(tmp_path, content, "mmsegmentation", {**PSPNET, "channels": 16})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"backbone.conv1.weight": torch.zeros(1)}, "holds no classifier"),
        ({"state_dict": [torch.zeros(1)]}, "must hold a state dict"),
        ([torch.zeros(1)], "must hold a state dict"),
    ],
)
def test_a_file_that_is_no_whole_network_is_refused(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, content, "attnfd", HEAD)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        convert(tmp_path, {}, "mmsegmentation", PSPNET)


def test_a_missing_file_is_named(tmp_path):
    flags = ["--checkpoint", str(tmp_path / "none.pth"), "--source", "attnfd", "--network_config", "{}"]
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        main([*flags, "--output", str(tmp_path / "out")])
