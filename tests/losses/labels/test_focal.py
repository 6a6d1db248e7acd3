import pytest
import torch
from label_cases import CLASS_WEIGHTS, assert_value_and_gradient, labels, logits, pixels

from hf_segkd.losses.labels.cross_entropy import cross_entropy
from hf_segkd.losses.labels.focal import Focal, focal_loss

WEIGHTS = CLASS_WEIGHTS.double()


def pixel_by_pixel(inputs, gamma, weights):
    total, divisor = 0.0, 0.0
    for probabilities, truth in pixels(inputs, labels()):
        p = probabilities[truth]
        total = total - weights[truth] * (1 - p) ** gamma * p.log()
        divisor = divisor + weights[truth]
    return total / divisor


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("weights", [torch.ones(4, dtype=torch.float64), WEIGHTS])
def test_value_and_gradient_are_the_formula_pixel_by_pixel(gamma, weights):
    assert_value_and_gradient(
        lambda x: focal_loss(x, labels(), 255, gamma, weights), lambda x: pixel_by_pixel(x, gamma, weights), logits()
    )


def test_with_gamma_0_it_is_the_weighted_cross_entropy():
    expected = cross_entropy(logits(), labels(), 255, WEIGHTS)
    torch.testing.assert_close(focal_loss(logits(), labels(), 255, 0, WEIGHTS), expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_pixels_that_are_right_for_certain_leave_the_gradient_finite(gamma):
    inputs = torch.tensor([[[[200.0]], [[0.0]]]], requires_grad=True)  # p is 1 in float32
    focal_loss(inputs, torch.zeros(1, 1, 1, dtype=torch.int64), gamma=gamma).backward()
    assert inputs.grad.isfinite().all()


def test_a_negative_gamma_is_refused():
    with pytest.raises(ValueError, match="gamma is -1; it must be 0 or more"):
        Focal(gamma=-1)
