import itertools

import pytest
import torch
from label_cases import assert_value_and_gradient, labels, logits, pixels

from hf_segkd.losses.labels.lovasz import lovasz_softmax


def one_minus_iou(wrong, truth):
    """Of a class, when the pixels `wrong` are: those of the class are missed, the others are taken for it."""
    missed, added = (wrong & truth).sum(), (wrong & ~truth).sum()
    return 1 - (truth.sum() - missed).double() / (truth.sum() + added)


def integral(inputs, truth_map):
    """The Lovasz extension as the integral of 1 - IoU over the thresholds of the errors, which is no sorted sum."""
    found = list(pixels(inputs, truth_map))
    classes = sorted({truth for _, truth in found})
    total = 0.0
    for c in classes:
        truth = torch.tensor([label == c for _, label in found])
        errors = torch.stack([1 - p[c] if label == c else p[c] for p, label in found])
        steps = [torch.zeros((), dtype=torch.float64), *errors.sort().values]  # between two the set is constant
        for low, high in itertools.pairwise(steps):
            total = total + (high - low) * one_minus_iou(errors.detach() >= high.detach(), truth)
    return total / len(classes)


@pytest.mark.parametrize("size", [(2, 2), (5, 6)])
def test_value_and_gradient_are_the_integral_of_1_minus_iou_over_thresholds(size):
    assert_value_and_gradient(
        lambda x: lovasz_softmax(x, labels(size=size)), lambda x: integral(x, labels(size=size)), logits(size=size)
    )


def test_of_certain_masks_it_is_1_minus_the_mean_iou():
    truth = torch.tensor([[[0, 0, 0, 1, 1, 255]]])
    answer = torch.tensor([[[0, 0, 1, 1, 2, 2]]])
    certain = 100.0 * torch.nn.functional.one_hot(answer, 4).movedim(-1, 1).double()
    expected = 1 - (2 / 3 + 1 / 3) / 2  # classes 0 and 1; 2 is not in the labels
    assert lovasz_softmax(certain, truth).item() == pytest.approx(expected, rel=1e-12)


def test_no_order_of_the_pixels_gives_a_larger_sum():
    """As for every submodular function: the extension is the largest sum over all orders."""
    inputs, truth_map = logits(size=(2, 2)), labels(size=(2, 2))
    found = list(pixels(inputs, truth_map))
    value, classes = lovasz_softmax(inputs, truth_map), sorted({truth for _, truth in found})
    assert len(found) == 2 * 2
    best = 0.0
    for c in classes:
        truth = torch.tensor([label == c for _, label in found])
        errors = torch.stack([1 - p[c] if label == c else p[c] for p, label in found]).detach()
        sums = []
        for order in itertools.permutations(range(len(found))):
            wrong = torch.zeros(len(found), dtype=torch.bool)
            total, before = 0.0, 0.0
            for pixel in order:
                wrong[pixel] = True
                after = one_minus_iou(wrong, truth)
                total, before = total + errors[pixel] * (after - before), after
            sums.append(float(total))
        best += max(sums) / len(classes)
    assert value.item() == pytest.approx(best, rel=1e-10)


def test_many_pixels_in_float32_give_what_float64_gives():
    large = {"size": (300, 300)}
    exact = logits(**large)
    rounded = exact.detach().float().requires_grad_()
    one, other = lovasz_softmax(exact, labels(**large)), lovasz_softmax(rounded, labels(**large))
    assert other.item() == pytest.approx(one.item(), rel=1e-5)
    (gradient,), (float32,) = torch.autograd.grad(one, exact), torch.autograd.grad(other, rounded)
    torch.testing.assert_close(float32.double(), gradient, rtol=1e-2, atol=1e-3 * gradient.abs().max())
