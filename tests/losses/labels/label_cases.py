"""Logits and labels for the tests of the losses on the labels, and float64 versions that know of pixels one by one."""

import torch

NUM_LABELS = 4
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 3.0, 0.25])


def logits(seed=0, scale=2.0, dtype=torch.float64, size=(5, 6)):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((2, NUM_LABELS, *size), generator=generator) * scale).to(dtype).requires_grad_()


def labels(seed=0, size=(5, 6)):
    """(2, h, w) of classes 0 to 2, never 3, with a row of ignored pixels."""
    drawn = torch.randint(0, NUM_LABELS - 1, (2, *size), generator=torch.Generator().manual_seed(seed))
    drawn[:, -1] = 255
    return drawn


def pixels(logits, labels):
    """Probabilities (k,) and class of each labelled pixel."""
    for image, truth in zip(logits.softmax(1), labels, strict=True):
        for row in range(truth.shape[0]):
            for column in range(truth.shape[1]):
                if truth[row, column] != 255:
                    yield image[:, row, column], int(truth[row, column])


def assert_value_and_gradient(function, expected, inputs):
    """Both functions of the logits have one value and one gradient."""
    value, other = function(inputs), expected(inputs)
    torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-14)
    (gradient,), (other_gradient,) = torch.autograd.grad(value, inputs), torch.autograd.grad(other, inputs)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-8, atol=1e-14)
