import copy

import pytest
import torch
from tiny_runs import network
from torch import nn

from hf_segkd.teacher import batch_statistics

IMAGES = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def features(model):
    with torch.no_grad():
        return model(pixel_values=IMAGES, output_features=True).features


def test_batch_norms_work_as_in_training_and_dropout_as_in_evaluation():
    teacher = network(seed=1).eval()
    training = copy.deepcopy(teacher).train()
    for module in training.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    expected, running = features(training), features(teacher)
    with batch_statistics(teacher):
        actual = features(teacher)
    for tap, feature in actual.items():
        assert torch.equal(feature, expected[tap])
        assert not torch.allclose(feature, running[tap])
    assert all(torch.equal(feature, running[tap]) for tap, feature in features(teacher).items())


def test_no_buffer_changes_and_every_module_comes_back_as_it_was():
    teacher = network(seed=1).eval()
    teacher.decoder.fuse.norm.train()  # a mode of its own
    buffers = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    modes = [module.training for module in teacher.modules()]
    with pytest.raises(ValueError, match="batch of one image"), batch_statistics(teacher):
        teacher(pixel_values=IMAGES[:1])  # after the backbone's batch norms have worked
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in teacher.named_buffers())
    assert [module.training for module in teacher.modules()] == modes
    assert all(module.track_running_stats for module in teacher.modules() if isinstance(module, nn.BatchNorm2d))


def test_networks_without_batch_norms_stay_as_they_are():
    layer = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)).eval()
    expected = layer(IMAGES)
    with batch_statistics(layer):
        assert torch.equal(layer(IMAGES), expected)
