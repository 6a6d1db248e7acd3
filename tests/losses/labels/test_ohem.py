import pytest
import torch
from label_cases import CLASS_WEIGHTS, assert_value_and_gradient, labels, logits, pixels

from hf_segkd.losses.labels.cross_entropy import cross_entropy
from hf_segkd.losses.labels.ohem import OHEM, ohem_cross_entropy

WEIGHTS = CLASS_WEIGHTS.double()


def pixel_by_pixel(inputs, thresh, kept, weights):
    """The hard pixels: those below the threshold, which is raised until `kept` are below it."""
    found = [(probabilities[truth], truth) for probabilities, truth in pixels(inputs, labels())]
    found.sort(key=lambda pixel: pixel[0].item())
    hard = [pixel for rank, pixel in enumerate(found) if pixel[0] < thresh or rank < kept]
    assert 0 < len(hard) < len(found)
    total = sum(-weights[truth] * probability.log() for probability, truth in hard)
    return total / sum(weights[truth] for _, truth in hard)


@pytest.mark.parametrize("weights", [torch.ones(4, dtype=torch.float64), WEIGHTS])
@pytest.mark.parametrize(("thresh", "min_kept"), [(0.7, 2), (0.05, 9)], ids=["threshold", "least number"])
def test_value_and_gradient_are_the_formula_pixel_by_pixel(thresh, min_kept, weights):
    assert_value_and_gradient(
        lambda x: ohem_cross_entropy(x, labels(), 255, thresh, min_kept, weights),
        lambda x: pixel_by_pixel(x, thresh, 2 * min_kept, weights),
        logits(),
    )


def test_by_default_a_sixteenth_of_the_labelled_pixels_is_kept():
    inputs, truth = logits(), labels()  # 50 labelled pixels
    by_default = ohem_cross_entropy(inputs, truth, thresh=1e-9)
    losses = torch.stack([-probabilities[c].log() for probabilities, c in pixels(inputs, truth)])
    torch.testing.assert_close(by_default, losses.topk(3).values.mean(), rtol=1e-12, atol=0.0)


def test_as_many_pixels_as_there_are_make_it_the_cross_entropy():
    everything = ohem_cross_entropy(logits(), labels(), min_kept=30)
    torch.testing.assert_close(everything, cross_entropy(logits(), labels()), rtol=1e-12, atol=0.0)


def test_easy_pixels_have_no_gradient():
    inputs = logits()
    (gradient,) = torch.autograd.grad(ohem_cross_entropy(inputs, labels(), min_kept=1), inputs)
    probability = inputs.softmax(1).gather(1, labels().where(labels() != 255, 0)[:, None])[:, 0]
    easy = (probability > 0.7) & (labels() != 255)
    assert easy.any()
    assert gradient.movedim(1, -1)[easy].abs().max() == 0


def test_min_kept_of_a_whole_crop_is_refused():
    with pytest.raises(ValueError, match="crops of 5 x 6 have 30: it would be the plain cross-entropy"):
        OHEM(min_kept=30)(logits(), labels(), 255, None)
    with pytest.raises(ValueError, match=r"min_kept must be a whole number from 0, got 0\.5"):
        OHEM(min_kept=0.5)
    with pytest.raises(ValueError, match="thresh is 1; it is a probability, above 0 and below 1"):
        OHEM(thresh=1)
