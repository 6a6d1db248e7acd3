"""`teacher_dtype fastest`: what is measured is chosen, told, and leaves the user's network as it was."""

import logging

import pytest
import torch
from accelerate import Accelerator
from foreign_models import build, segformer
from tiny_networks import fill_weights
from tiny_runs import network, same, weights

from hf_segkd.networks import FeatureNetwork, arithmetic
from hf_segkd.networks.arithmetic import Arithmetic, fastest, network_in
from hf_segkd.networks.teacher import Teacher

IMAGES = torch.randn(3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
PLAIN = Arithmetic("float32", False, False)


def scripted(monkeypatch, times):
    """Each measurement takes the next of these seconds; returns what was measured."""
    seen, left = [], iter(times)

    def seconds(network, images, fastest_yet):
        seen.append((network.dtype, len(images)))
        value = next(left)
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(arithmetic, "_seconds", seconds)
    return seen


@pytest.mark.parametrize(
    ("times", "chosen"),
    [  # as it is; float32 folded, with the channels last; bfloat16 folded, with the channels last
        ([1.0, 0.9, 0.8, 0.5, 0.4], Arithmetic("bfloat16", True, True)),
        ([1.0, 0.9, 0.8, 2.0, 3.0], Arithmetic("float32", True, True)),
        ([1.0, 0.9, 0.89, 0.88, 0.87], Arithmetic("float32", True, False)),  # less than a twentieth is no gain
        ([1.0, 0.96, 0.97, 0.98, 0.96], PLAIN),
        ([1.0, 0.9, 0.95, RuntimeError("no such operation"), 0.1], Arithmetic("bfloat16", True, True)),
    ],
)
def test_the_fastest_is_chosen_and_all_times_are_told(times, chosen, monkeypatch, caplog):
    seen = scripted(monkeypatch, times)
    with caplog.at_level(logging.WARNING):
        assert fastest(network().eval(), IMAGES, folds=True, channels_last=False) == chosen
    assert seen == [(torch.float32, 2)] * 3 + [(torch.bfloat16, 2)] * 2  # two images of the three, on a CPU
    assert f"The teacher computes in {chosen}" in caplog.text
    assert ("(as it was loaded)" in caplog.text) == (chosen == PLAIN)
    for seconds in times:
        assert isinstance(seconds, Exception) or f": {1000 * seconds:.3g} ms" in caplog.text


def test_a_run_that_has_the_channels_last_keeps_them_and_batch_statistics_are_not_folded(monkeypatch):
    seen = scripted(monkeypatch, [1.0, 0.5])
    chosen = fastest(network().eval(), IMAGES, folds=False, channels_last=True)
    assert chosen == Arithmetic("bfloat16", False, True)
    assert [dtype for dtype, _ in seen] == [torch.float32, torch.bfloat16]


def test_a_measurement_is_of_seconds_and_leaves_out_what_is_not_finite():
    alone = network().eval()
    assert 0 < arithmetic._seconds(alone, IMAGES, float("inf")) < 10
    forwards = []
    alone.register_forward_hook(lambda *_: forwards.append(1))
    assert 0 < arithmetic._seconds(alone, IMAGES, 1e-9) < 10
    assert len(forwards) == 2  # to warm up, and one that was much slower than the fastest yet
    with torch.no_grad():
        alone.classifier.bias.fill_(1e5)
    assert arithmetic._seconds(alone.half(), IMAGES, float("inf")) == float("inf")


@pytest.mark.parametrize("make", [lambda: network(width=12), lambda: FeatureNetwork(build(segformer))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_computes_as_it_was_told_and_the_network_stays_bit_equal(dtype, make):
    given = make().eval()
    fill_weights(given)
    before = weights(given)
    with torch.no_grad():
        expected = given(pixel_values=IMAGES, output_features=True).features
        copied = network_in(Arithmetic(dtype, True, True), given, IMAGES)
        actual = copied(pixel_values=IMAGES.to(copied.dtype), output_features=True).features
        after = given(pixel_values=IMAGES, output_features=True).features
    assert copied.dtype == getattr(torch, dtype)
    tolerance = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    for tap, feature in expected.items():
        assert (actual[tap].float() - feature).norm() <= tolerance * feature.norm(), tap
        assert torch.equal(after[tap], feature)
    assert same(weights(given), before)
    assert any(weight.stride(1) == 1 < weight.shape[1] for weight in copied.parameters() if weight.ndim == 4)


def chosen_by(teacher, monkeypatch, times):
    scripted(monkeypatch, times)
    return teacher.features(IMAGES)


def test_a_teacher_measures_once_and_is_digested_as_the_network_it_was_given(monkeypatch):
    given = network(width=12, seed=1)
    fill_weights(given)
    before = weights(given)
    teacher = Teacher(given, dtype="fastest")
    names = teacher.state_dict().keys()
    teacher.prepare(Accelerator(cpu=True))
    features = chosen_by(teacher, monkeypatch, [1.0, 0.5, 0.6, 0.7, 0.8])
    assert teacher.arithmetic == Arithmetic("float32", True, False)
    with torch.no_grad():
        exact = given(pixel_values=IMAGES, output_features=True).features
    for tap, feature in features.items():
        assert not torch.equal(feature, exact[tap])
        assert (feature - exact[tap]).norm() <= 1e-4 * exact[tap].norm()
    assert torch.equal(teacher.features(IMAGES)["decoder"], features["decoder"])  # no time is left to measure with
    assert teacher.network is given
    assert same(weights(given), before)
    assert teacher.state_dict().keys() == names
    assert teacher.spec.norms.keys() == given.tap_norms.keys()


def test_where_nothing_is_faster_the_network_itself_runs(monkeypatch):
    given = network(width=12, seed=1)
    features = chosen_by(Teacher(given, dtype="fastest"), monkeypatch, [1.0] * 5)
    with torch.no_grad():
        exact = given(pixel_values=IMAGES, output_features=True).features
    assert all(torch.equal(feature, exact[tap]) for tap, feature in features.items())


def test_batch_statistics_are_those_of_the_copy(monkeypatch):
    given = network(width=12, seed=1)
    teacher = Teacher(given, dtype="fastest", batch_norm="batch_stats")
    features = chosen_by(teacher, monkeypatch, [1.0, 0.5, 0.6, 0.7])  # not folded, float32 is as it was
    assert teacher.arithmetic == Arithmetic("float32", False, True)
    exact = Teacher(given, dtype="float32", batch_norm="batch_stats").features(IMAGES)
    for tap, feature in features.items():
        assert (feature - exact[tap]).norm() <= 1e-4 * exact[tap].norm()
