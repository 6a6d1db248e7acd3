"""Folded batch norms: the same logits and features, and no convolution that something else reads is touched."""

import copy

import pytest
import torch
from foreign_models import DENSE, build, segformer, upernet
from network_cases import CASES, PIXELS
from tiny_networks import fill_weights, tiny_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_segkd.networks import FeatureNetwork
from hf_segkd.networks.folding import fold_batch_norms

IMAGES = PIXELS[:, :, :32, :32]


def outputs(network, images):
    with torch.no_grad():
        output = network(pixel_values=images, output_features=True)
    return {"output.logits": output.logits, **output.features}


def assert_close(actual, expected):
    assert actual.keys() == expected.keys()
    for tap, feature in expected.items():
        assert (actual[tap] - feature).norm() <= 1e-4 * feature.norm(), tap


def fold_and_compare(network, images):
    """How many batch norms were folded, and the paths of those that ran and were not."""
    fill_weights(network)
    expected = outputs(network, images)
    folded = copy.deepcopy(network)
    count = fold_batch_norms(folded, images[:1])
    assert_close(outputs(folded, images), expected)
    return count, [path for path, module in folded.named_modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_batch_norm_of_our_networks_folds_and_nothing_changes(case):
    network = case.build().eval()
    norms = sum(isinstance(module, _BatchNorm) for module in network.modules())
    count, left = fold_and_compare(network, PIXELS)
    auxiliary = [path for path in left if path.startswith("auxiliary_head")]  # runs in training only
    assert left == auxiliary
    assert count == norms - len(auxiliary)


@pytest.mark.parametrize("make", DENSE)
def test_models_of_transformers_give_the_same_too(make):
    count, _ = fold_and_compare(FeatureNetwork(build(make)), IMAGES)
    assert count > 0 or make.__name__ == "dpt"


@pytest.mark.parametrize(
    ("make", "taps", "path", "kept"),
    [
        (segformer, {}, "decode_head.batch_norm", False),
        (segformer, {"fused": "decode_head.linear_fuse"}, "decode_head.batch_norm", True),  # before the norm
        (segformer, {"normed": "decode_head.batch_norm"}, "decode_head.batch_norm", False),
        (upernet, {}, "decode_head.bottleneck.batch_norm", False),
        (upernet, {"raw": "decode_head.bottleneck.conv"}, "decode_head.bottleneck.batch_norm", True),
    ],
)
def test_a_convolution_whose_output_is_a_feature_keeps_its_batch_norm(make, taps, path, kept):
    network = FeatureNetwork(build(make), taps=taps)
    _, left = fold_and_compare(network, IMAGES)
    assert (f"model.{path}" in left) == kept


class Block(nn.Module):
    """A convolution, and what follows it."""

    def __init__(self, follow, convolution=None):
        super().__init__()
        self.conv = convolution or nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.follow = follow
        self.config = None

    def forward(self, pixel_values, output_features):
        x = self.follow(self, self.conv(pixel_values))
        return type("Output", (), {"logits": x, "features": {}})


class Halved(nn.Conv2d):
    """Makes its weights in each forward."""

    def forward(self, x):
        return self._conv_forward(x, self.weight / 2, self.bias)


@pytest.mark.parametrize(
    ("follow", "count"),
    [
        (lambda self, x: self.norm(x), 1),
        (lambda self, x: self.norm(x).relu_(), 1),
        (lambda self, x: self.norm(x) + torch.zeros(x.shape), 1),  # a shape is no reader
        (lambda self, x: self.norm(x) + x, 0),
        (lambda self, x: torch.cat([self.norm(x), x.flip(1)]), 0),
        (lambda self, x: self.norm(x.view_as(x)), 0),
        (lambda self, x: self.norm(self.norm(x)), 0),
        (lambda self, x: self.norm(x) + self.norm(self.conv(x)), 0),
    ],
)
def test_a_batch_norm_folds_only_where_it_alone_reads_the_convolution(follow, count):
    assert fold_and_compare(Block(follow).eval(), IMAGES)[0] == count


def test_convolutions_that_make_their_weights_and_norms_of_batches_stay():
    follow = lambda self, x: self.norm(x)  # noqa: E731
    assert fold_and_compare(Block(follow, Halved(3, 3, 1)).eval(), IMAGES)[0] == 0
    training = Block(follow).eval()
    training.norm.train()
    assert fold_batch_norms(training, IMAGES) == 0
    without = Block(follow).eval()
    without.norm = nn.BatchNorm2d(3, track_running_stats=False).eval()
    assert fold_batch_norms(without, IMAGES) == 0


def test_no_hook_is_left():
    network = tiny_model()
    fold_batch_norms(network, PIXELS[:1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
