#!/usr/bin/env bash
# transformers 5.23.0: a trained torch network put inside a PreTrainedModel loses its weights in post_init(), silently.
#
# Wrapping a network of another library so that Trainer or save_pretrained can handle it is common: a PreTrainedModel
# whose __init__ takes the finished network and ends with self.post_init(), as the documentation of custom models says.
# post_init() then initialises every convolution and batch norm in it anew. Seen: convolution weights 0.25 become random
# numbers, their biases 0, a batch norm's weight 1 and running mean 0. No warning, no error. Weights that carry the mark
# `_is_hf_initialized` are left alone, which a network of another library never has.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

assert transformers.__version__ == "5.23.0", transformers.__version__


class WrapperConfig(PreTrainedConfig):
    model_type = "wrapper-demo"


class Wrapper(PreTrainedModel):
    config_class = WrapperConfig

    def __init__(self, config, network):
        super().__init__(config)
        self.network = network
        self.post_init()

    def forward(self, pixel_values):
        return self.network(pixel_values)


def trained():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.25)
        network[1].running_mean.fill_(3.0)
    return network


with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    network = trained()
    Wrapper(WrapperConfig(), network)
assert not said, said
state, expected = network.state_dict(), trained().state_dict()
for name, value in state.items():
    print(f"{name:22} {'kept' if torch.equal(value, expected[name]) else 'changed':8} {value.flatten()[0].item():.4f}")
changed = {name for name in state if not torch.equal(state[name], expected[name])}
assert changed == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "3.weight", "3.bias"}, changed
assert state["1.running_mean"].eq(0).all() and state["1.weight"].eq(1).all() and state["0.bias"].eq(0).all()

# With the mark on every tensor they are kept.
network = trained()
for tensor in [*network.parameters(), *network.buffers()]:
    tensor._is_hf_initialized = True
Wrapper(WrapperConfig(), network)
kept = network.state_dict()
assert all(torch.equal(kept[name], expected[name]) for name in kept)
print("with _is_hf_initialized on every tensor: all kept")
PY
