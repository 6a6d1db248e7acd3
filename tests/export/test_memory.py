"""The memory of a runtime, measured in a process of its own."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_segkd.export.memory import peak_mb

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="is measured on Linux alone")


def load_with_weights(path):
    weights = np.ones(50_000_000, np.uint8)  # 50 MB that stay

    def run(image):
        np.ones(100_000_000, np.uint8)  # and 100 that a pass needs
        return image * float(weights[0])

    return run


def fail(path):
    raise ValueError(f"{path} is no such file")


@pytest.mark.slow
def test_weights_and_what_a_pass_needs_are_counted_together(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    measured = peak_mb(load_with_weights, Path("weights"), torch.zeros(1, 3, 4, 4), "it")
    assert measured == pytest.approx(150, abs=15)  # the rest are parts of PyTorch that load late


@pytest.mark.slow
def test_what_cannot_be_measured_is_told(monkeypatch, caplog):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    assert peak_mb(fail, Path("weights"), torch.zeros(1, 3, 4, 4), "LiteRT") is None
    assert "The memory of LiteRT is not measured" in caplog.text
    assert "weights is no such file" in caplog.text
