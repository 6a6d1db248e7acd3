"""Fake features of two small networks, and the reference numbers that lie outside the repository."""

import json
import os
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_segkd.types import NetworkSpec

NUM_LABELS = 5
STUDENT = NetworkSpec(
    channels={
        "low_level": 6,
        "backbone": 16,
        "encoder": 8,
        "decoder": 8,
        "logits": NUM_LABELS,
        "low_level_pre": 6,
        "backbone_post": 16,
        "encoder_pre": 8,
        "decoder_pre": 8,
        **{tap: c for i, c in enumerate((6, 8, 12, 16), start=1) for tap in (f"stage{i}", f"stage{i}_pre")},
    },
    num_labels=NUM_LABELS,
)
TEACHER = NetworkSpec(
    channels={name: 2 * c if name != "logits" else c for name, c in STUDENT.channels.items()},
    num_labels=NUM_LABELS,
    norms={
        tap: (torch.linspace(-1.0, 1.0, 2 * c), torch.linspace(0.5, -0.5, 2 * c))
        for tap, c in STUDENT.channels.items()
        if tap.startswith(("stage", "encoder", "decoder")) and tap.endswith("_pre")
    },
)
# Deep maps are half the size of the shallow ones; odd sizes, as real crops have.
DEEP = ("backbone", "backbone_post", "encoder", "encoder_pre", "stage3", "stage3_pre", "stage4", "stage4_pre")
SIZES = dict.fromkeys(DEEP, (5, 7))


def make_features(spec, seed, sizes=SIZES, default_size=(9, 13), scale=1.0, dtype=torch.float32):
    """Random maps of every tap, two images, with gradient, and a classifier weight."""
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for tap, channels in spec.channels.items():
        shape = (2, channels, *sizes.get(tap, default_size))
        features[tap] = torch.randn(shape, generator=generator) * scale
    weight = torch.randn(spec.num_labels, spec.channels["decoder"], 1, 1, generator=generator) * 0.3
    features["classifier_weight"] = weight
    return {name: value.to(dtype).requires_grad_() for name, value in features.items()}


def make_labels(seed=0, border=3):
    """Labels (2, 33, 49) of all classes but the last, in 4 x 4 blocks, with an ignored border."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, NUM_LABELS - 1, (2, 9, 13), generator=generator)
    labels = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :33, :49].clone()
    labels[:, :border], labels[:, -border:], labels[:, :, :border], labels[:, :, -border:] = 255, 255, 255, 255
    return labels


class Allocations(TorchDispatchMode):
    """Counts what is computed under it: bytes at the peak and of the largest tensor, elements of all results."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.largest = self.elements = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements += tensor.numel()
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        if storage not in self.known:
            self.known.add(storage)
            self.live += storage.nbytes()
            weakref.finalize(storage, self.free, storage.nbytes())
            self.peak, self.largest = max(self.peak, self.live), max(self.largest, storage.nbytes())

    def free(self, nbytes):
        self.live -= nbytes


def draw(seed, *shapes, scale=1.0):
    """The recipe of methods.json: torch seed, then randn * scale in order."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * scale for shape in shapes]


def doubles(seed, *shapes):
    """As `draw`, in float64; the first has a gradient."""
    student, *others = (tensor.double() for tensor in draw(seed, *shapes))
    return student.requires_grad_(), *others


def assert_same_with_gradient(value, expected, student):
    (gradient,) = torch.autograd.grad(value, student)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-12)


def value_and_gradient(function, student):
    student = student.clone().requires_grad_()
    value = function(student)
    value.backward()
    return value.detach(), student.grad


def reference(name):
    """Contents of a reference file; skips the test where the folder is missing."""
    folder = Path(os.environ.get("HF_SEGKD_SHARED", Path(__file__).parents[3] / "shared")) / "golden"
    if not (folder / name).exists():
        pytest.skip(f"no reference file {folder / name}; set HF_SEGKD_SHARED to the folder that holds golden/")
    return json.loads((folder / name).read_text())
