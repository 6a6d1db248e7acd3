import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.lad import angular_distance
from hf_segkd.types import NetworkSpec

VECTORS = ("pixel", "channel", "sample", "patch")


def derived_case():
    """torch seed 20, student and teacher randn(2, 32, 12, 20), in float64."""
    generator = torch.Generator().manual_seed(20)
    student, teacher = (torch.randn(2, 32, 12, 20, generator=generator).double() for _ in range(2))
    return student.requires_grad_(), teacher


def vectors(x, vector):
    """The vectors of (b, c, 3, 4), one after the other; patches of 2 x 2, those at the bottom of 1 x 2."""
    images, channels = range(x.shape[0]), range(x.shape[1])
    if vector == "pixel":
        return [x[i, :, row, column] for i in images for row in range(3) for column in range(4)]
    if vector == "channel":
        return [x[i, c].flatten() for i in images for c in channels]
    if vector == "sample":
        return [x[i].flatten() for i in images]
    return [
        x[i, :, row : row + 2, column : column + 2].flatten() for i in images for row in (0, 2) for column in (0, 2)
    ]


@pytest.mark.parametrize("vector", VECTORS)
def test_value_and_gradient_are_those_of_the_formula_written_as_a_loop(vector):
    student, teacher = (x[:, :5, :3, :4].detach() for x in derived_case())
    actual, expected = (student.clone().requires_grad_() for _ in range(2))
    value = angular_distance(actual, teacher, vector, patch_size=2)
    value.backward()
    pairs = list(zip(vectors(expected, vector), vectors(teacher, vector), strict=True))
    formula = sum((s / s.pow(2).sum().sqrt() - t / t.pow(2).sum().sqrt()).pow(2).sum() for s, t in pairs) / len(pairs)
    formula.backward()
    torch.testing.assert_close(value, formula, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-9, atol=1e-14)


def test_value_and_gradient_are_those_of_the_reference_derivation():
    student, teacher = derived_case()
    value = angular_distance(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(1.9902238441338724, rel=1e-12)
    assert student.grad.norm().item() == pytest.approx(0.016356977653442205, rel=1e-9)
    first = torch.tensor([-0.00010863076022360474, 3.6954057537531785e-05, 0.0001681869907770306])
    torch.testing.assert_close(student.grad.flatten()[:3].float(), first, rtol=2e-5, atol=0.0)


def test_centred_channels_are_the_mean_squared_distance_of_standardised_channels():
    student, teacher = (x.detach() for x in derived_case())
    actual, expected = (student.clone().requires_grad_() for _ in range(2))
    value = angular_distance(actual, 3.0 * teacher - 1.0, "centred_channel")
    value.backward()
    means, deviations = zip(
        *[(x.mean((2, 3), True), x.std((2, 3), False, True)) for x in (expected, teacher)], strict=False
    )
    formula = ((expected - means[0]) / deviations[0] - (teacher - means[1]) / deviations[1]).square().mean()
    formula.backward()
    torch.testing.assert_close(value, formula, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("vector", VECTORS)
def test_the_length_of_the_vectors_costs_nothing_and_gets_no_gradient(vector):
    student, teacher = derived_case()
    assert angular_distance(7.0 * teacher, teacher, vector) < 1e-12
    angular_distance(student, teacher, vector).backward()
    assert (student * student.grad).sum().abs() < 1e-12


def test_a_length_per_position_costs_pixels_nothing_and_a_length_per_channel_costs_channels_nothing():
    _, teacher = derived_case()
    positions, channels = torch.rand(1, 1, 12, 20) + 0.1, torch.rand(1, 32, 1, 1) + 0.1
    assert angular_distance(positions * teacher, teacher, "pixel") < 1e-12
    assert angular_distance(positions * teacher, teacher, "channel") > 1e-3
    assert angular_distance(channels * teacher, teacher, "channel") < 1e-12
    assert angular_distance(channels * teacher, teacher, "pixel") > 1e-3


def test_a_patch_of_one_position_is_a_pixel_and_one_of_the_map_is_the_sample():
    student, teacher = derived_case()
    pixel, sample = (angular_distance(student, teacher, vector) for vector in ("pixel", "sample"))
    torch.testing.assert_close(angular_distance(student, teacher, "patch", 1), pixel)
    torch.testing.assert_close(angular_distance(student, teacher, "patch", 20), sample)


def test_a_projector_exists_only_where_the_widths_differ():
    assert not list(create_loss("lad", STUDENT, STUDENT).parameters())
    loss = create_loss("lad", STUDENT, TEACHER, weight=3.0, vector="channel")
    (weight,) = loss.parameters()
    assert weight.shape == (16, 8, 1, 1)
    student, teacher = make_features(STUDENT, 1), make_features(TEACHER, 2)
    expected = 3.0 * angular_distance(F.conv2d(student["decoder"], weight), teacher["decoder"], "channel")
    torch.testing.assert_close(loss(student, teacher, make_labels())["lad"], expected)


def test_values_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="vector is 'map'; it must be one of 'pixel', 'channel', 'centred_channel'"):
        create_loss("lad", STUDENT, TEACHER, vector="map")
    other = NetworkSpec(channels={"logits": 7}, num_labels=7)
    with pytest.raises(ValueError, match="student has 5 classes and the teacher 7"):
        create_loss("lad", STUDENT, other, tap="logits")
