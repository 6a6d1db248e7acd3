import gc

import pytest
from local_hub import LocalHub
from torch import nn

from hf_segkd.losses.discriminator import SelfAttention, SpectralNormConv2d


@pytest.fixture(scope="module", autouse=True)
def _garbage_of_this_file_alone_is_looked_for():
    """A run of training ends with gc.collect(), which took longer than the run: it looked at every imported library."""
    gc.collect()
    gc.freeze()


def small_discriminator(num_labels):
    """The layers of the released one, one each."""
    return nn.Sequential(
        nn.BatchNorm2d(num_labels),
        SpectralNormConv2d(num_labels, 8, 4, stride=2, padding=1),
        nn.LeakyReLU(0.1),
        SelfAttention(8),
        nn.Conv2d(8, 1, 4),
    )


@pytest.fixture
def _small_discriminator(monkeypatch):
    """For runs that only pass by it: the released one has 2.8 million parameters and sees at least 64x64 pixels."""
    monkeypatch.setattr("hf_segkd.losses.adversary.Discriminator", small_discriminator)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub that this process talks to, on this machine."""
    with LocalHub(tmp_path) as hub:
        hub.serve_this_process(monkeypatch)
        yield hub
