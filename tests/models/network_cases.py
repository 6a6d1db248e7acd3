"""A small network of every architecture, on every kind of backbone, with and without an auxiliary head.

A new network gets a line in `CASES`, and is then held to all that `test_every_network*.py` asks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from tiny_mmseg_networks import tiny_network
from tiny_networks import tiny_hrnet, tiny_model
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Case:
    """A small network and the strides of its maps: the four stages', the logits', the encoder's if it has one."""

    build: Callable[..., PreTrainedModel]
    stages: tuple[int, int, int, int]
    logits: int
    encoder: int | None = None

    def stride(self, tap: str) -> int:
        name = tap.removesuffix("_pre").removesuffix("_post")
        if name.startswith("stage"):
            return self.stages[int(name[-1]) - 1]
        return {
            "low_level": 4,
            "backbone": self.stages[-1],
            "encoder": self.encoder,
            "decoder": self.logits,
            "logits": self.logits,
        }[name]


MMSEG_MOBILENET = {
    "model_type": "segkd-mobilenet-v2",
    "depth_multiplier": 0.25,
    "strides": [1, 2, 2, 1, 1, 1, 1],
    "out_features": ["stage2", "stage5", "stage7"],
}
CASES = {
    "deeplabv3plus_resnet": Case(partial(tiny_model, "resnet"), (4, 8, 16, 16), 4, 16),
    "deeplabv3plus_bottleneck": Case(partial(tiny_model, "bottleneck"), (4, 8, 16, 32), 4, 32),
    "deeplabv3plus_mobilenet_v2": Case(partial(tiny_model, "mobilenet_v2"), (4, 8, 16, 16), 4, 16),
    "deeplabv3plus_mmseg": Case(partial(tiny_network, "deeplabv3plus"), (4, 8, 8, 8), 4, 8),
    "deeplabv3plus_mmseg_mobilenet_v2": Case(
        partial(tiny_network, "deeplabv3plus", backbone_config=MMSEG_MOBILENET), (4, 8, 8, 8), 4, 8
    ),
    "deeplabv3plus_mmseg_plain": Case(
        partial(tiny_network, "deeplabv3plus", use_auxiliary_head=False), (4, 8, 8, 8), 4, 8
    ),
    "pspnet": Case(partial(tiny_network, "pspnet"), (4, 8, 8, 8), 8),
    "pspnet_plain": Case(partial(tiny_network, "pspnet", use_auxiliary_head=False), (4, 8, 8, 8), 8),
    "isanet": Case(partial(tiny_network, "isanet"), (4, 8, 8, 8), 8),
    "isanet_plain": Case(partial(tiny_network, "isanet", use_auxiliary_head=False), (4, 8, 8, 8), 8),
    "hrnet": Case(tiny_hrnet, (4, 8, 16, 32), 4, 4),
}
every_network = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

PIXELS = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 4 - 2
LABELS = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
LABELS[:, :9] = 255
