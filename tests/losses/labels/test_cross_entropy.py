import pytest
import torch
from label_cases import CLASS_WEIGHTS, assert_value_and_gradient, labels, logits, pixels
from torch.nn import functional as F

from hf_segkd.losses.labels.cross_entropy import CrossEntropy, cross_entropy
from hf_segkd.models.modeling_segmentation import segmentation_loss

WEIGHTS = CLASS_WEIGHTS.double()


def pixel_by_pixel(inputs, weights, smoothing):
    total, divisor = 0.0, 0.0
    for probabilities, truth in pixels(inputs, labels()):
        target = torch.full((4,), smoothing / 4, dtype=torch.float64)
        target[truth] += 1 - smoothing
        total = total - (target * weights * probabilities.log()).sum()
        divisor = divisor + weights[truth]
    return total / divisor


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [torch.ones(4, dtype=torch.float64), WEIGHTS])
def test_value_and_gradient_are_the_formula_pixel_by_pixel(weights, smoothing):
    assert_value_and_gradient(
        lambda x: cross_entropy(x, labels(), class_weights=weights, smoothing=smoothing),
        lambda x: pixel_by_pixel(x, weights, smoothing),
        logits(),
    )


def test_it_is_the_mean_of_torch():
    options = {"ignore_index": 255, "weight": WEIGHTS, "label_smoothing": 0.2}
    expected = F.cross_entropy(logits(), labels(), **options)
    torch.testing.assert_close(cross_entropy(logits(), labels(), 255, WEIGHTS, 0.2), expected, rtol=1e-12, atol=0.0)


def test_without_options_it_has_the_bits_of_the_networks_own():
    inputs = logits(dtype=torch.float32)
    assert torch.equal(cross_entropy(inputs, labels()), segmentation_loss(inputs, labels(), 255))


def test_a_common_factor_of_the_weights_changes_nothing():
    one, other = (cross_entropy(logits(), labels(), 255, factor * WEIGHTS, 0.1) for factor in (1, 7))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)


def test_a_class_of_weight_0_is_as_if_it_had_no_label():
    without = labels().masked_fill(labels() == 1, 255)
    weighted = cross_entropy(logits(), labels(), class_weights=torch.tensor([1.0, 0, 1, 1]).double())
    torch.testing.assert_close(weighted, cross_entropy(logits(), without), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("smoothing", [1.0, -0.1])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=f"Label smoothing is {smoothing}; it must be from 0 to below 1"):
        CrossEntropy(smoothing=smoothing)
