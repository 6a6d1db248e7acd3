import torch
from label_cases import assert_value_and_gradient, labels, logits, pixels

from hf_segkd.losses.labels.dice import dice_loss


def pixel_by_pixel(inputs):
    """V-Net's coefficient of classes 0 to 2, those that are there."""
    both, squares, truths = [0.0] * 3, [0.0] * 3, [0] * 3
    for probabilities, truth in pixels(inputs, labels()):
        for c in range(3):
            both[c] = both[c] + probabilities[c] * (truth == c)
            squares[c] = squares[c] + probabilities[c] ** 2
            truths[c] += truth == c
    return 1 - sum(2 * both[c] / (squares[c] + truths[c]) for c in range(3)) / 3


def test_value_and_gradient_are_the_formula_pixel_by_pixel():
    assert_value_and_gradient(lambda x: dice_loss(x, labels()), pixel_by_pixel, logits())


def test_masks_that_are_right_cost_nothing_and_wrong_ones_cost_1():
    truth = labels()
    right = 100.0 * torch.nn.functional.one_hot(truth.where(truth != 255, 3), 4).movedim(-1, 1).double()
    torch.testing.assert_close(dice_loss(right, truth), torch.zeros((), dtype=torch.float64), rtol=0.0, atol=1e-12)
    wrong = right.roll(1, dims=1)
    torch.testing.assert_close(dice_loss(wrong, truth), torch.ones((), dtype=torch.float64), rtol=0.0, atol=1e-12)


def test_a_picture_that_comes_twice_costs_what_it_costs_once():
    twice = dice_loss(logits().repeat(2, 1, 1, 1), labels().repeat(2, 1, 1))
    torch.testing.assert_close(twice, dice_loss(logits(), labels()), rtol=1e-12, atol=0.0)


def test_it_is_one_measure_of_the_whole_batch():
    truth = labels()
    truth[0] = truth[0].clamp(max=1)  # class 2 is in the second image only
    images = [dice_loss(logits()[i : i + 1], truth[i : i + 1]) for i in range(2)]
    assert abs(dice_loss(logits(), truth) - sum(images) / 2) > 1e-3
