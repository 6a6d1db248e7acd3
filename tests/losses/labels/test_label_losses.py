"""What holds for every loss on the labels, alone and beside others."""

import pytest
import torch
from label_cases import CLASS_WEIGHTS, labels, logits

from hf_segkd.losses.labels import LABEL_LOSSES, LabelLosses, create_label_losses

names = pytest.mark.parametrize("name", LABEL_LOSSES)


def value(name, inputs, truth, weights=None):
    (term,) = LabelLosses(create_label_losses(name, {}), weights)(inputs, truth, 255)
    return term


@names
@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
def test_logits_of_any_size_give_finite_values_and_gradients(name, weights):
    inputs = logits(scale=50.0, dtype=torch.float32)
    term = value(name, inputs, labels(), weights)
    term.backward()
    assert term.isfinite()
    assert inputs.grad.isfinite().all()


@names
@pytest.mark.parametrize("weights", [None, CLASS_WEIGHTS])
def test_a_batch_without_a_label_costs_0_and_has_a_graph(name, weights):
    inputs = logits(dtype=torch.float32)
    term = value(name, inputs, torch.full((2, 5, 6), 255), weights)
    term.backward()
    assert term == 0
    assert torch.equal(inputs.grad, torch.zeros_like(inputs))


@names
def test_what_the_network_says_of_ignored_pixels_does_not_matter(name):
    inputs, truth = logits(dtype=torch.float32), labels()
    others = torch.where((truth == 255)[:, None], logits(seed=9, dtype=torch.float32), inputs)
    assert torch.equal(value(name, inputs, truth), value(name, others, truth))
    (gradient,) = torch.autograd.grad(value(name, inputs, truth), inputs)
    assert gradient.movedim(1, -1)[truth == 255].abs().max() == 0


@names
def test_a_constant_added_to_all_logits_of_a_pixel_changes_nothing(name):
    shift = torch.arange(30.0).reshape(1, 1, 5, 6)
    torch.testing.assert_close(
        value(name, logits() + shift, labels()), value(name, logits(), labels()), rtol=1e-9, atol=0.0
    )


@names
def test_another_ignored_label_is_another_number_only(name):
    truth = labels()
    (loss,) = create_label_losses(name, {})
    for ignored in (-100, 3):  # 3 is a class of the network, too
        other = truth.where(truth != 255, ignored)
        assert torch.equal(loss(logits(), other, ignored, None), loss(logits(), truth, 255, None))


@names
def test_autocast_does_not_round_it(name):
    inputs = logits(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        term = value(name, inputs, labels())
    assert term.dtype == torch.float32
    assert torch.equal(term, value(name, inputs, labels()))


@names
def test_class_weights_of_1_change_nothing_and_others_what_uses_them(name):
    inputs = logits(dtype=torch.float32)
    plain = value(name, inputs, labels())
    torch.testing.assert_close(value(name, inputs, labels(), torch.ones(4)), plain)
    weighted = value(name, inputs, labels(), CLASS_WEIGHTS)
    assert (weighted != plain) == LABEL_LOSSES[name].uses_class_weights


@names
def test_a_paper_has_all_that_a_citation_needs(name):
    paper = LABEL_LOSSES[name].paper
    if name == "ce":
        assert paper is None
        return
    assert paper.bibtex.startswith("@")
    assert paper.bibtex.count("{") == paper.bibtex.count("}")
    assert paper.arxiv
    assert paper.venue


@names
def test_means_over_pixels_are_those_that_two_images_make_by_their_shares(name):
    """The sum of the images' values, each times its share of the pixels' weights, is that of both together."""
    inputs, truth = logits(), labels()
    truth[0, :3] = 255
    (loss,) = create_label_losses(name, {})
    both, total = LabelLosses([loss], CLASS_WEIGHTS.double()), 0.0
    for index in range(2):
        image, its_labels = inputs[index : index + 1], truth[index : index + 1]
        total += both(image, its_labels, 255) * both.pixel_weight(its_labels, 255) / both.pixel_weight(truth, 255)
    equal = torch.isclose(total, both(inputs, truth, 255), rtol=1e-9).item()
    assert equal == loss.averages_pixels


def test_several_terms_stand_side_by_side_with_their_weights():
    losses = LabelLosses(create_label_losses("ce, dice,focal", {"dice": {"weight": 0.5}}, ce_weight=2))
    assert losses.weights == {"ce": 2, "dice": 0.5, "focal": 1}
    terms = losses(logits(), labels(), 255)
    assert terms.shape == (3,)
    for term, name in zip(terms, losses.weights, strict=True):
        assert torch.equal(term, value(name, logits(), labels()))


def test_class_weights_are_not_saved():
    assert not LabelLosses(create_label_losses("ce", {}), CLASS_WEIGHTS).state_dict()


@pytest.mark.parametrize(
    ("names", "kwargs", "options", "message"),
    [
        ("dize", {}, {}, "Unknown loss on the labels 'dize'. Did you mean 'dice'"),
        ("ce,ce", {}, {}, "names a loss twice"),
        ("dice", {"wieght": 1}, {}, "dice has no argument 'wieght'. Did you mean 'weight'"),
        ("ce,dice", {"weight": 1}, {}, "each has its arguments under its own name"),
        ("ce,dice", {"focal": {"weight": 1}}, {}, "each has its arguments under its own name"),
        ("ce", {"smoothing": 0.1}, {}, "The arguments of ce are ce_weight, label_smoothing_factor and class_weights"),
        ("dice", {}, {"ce_weight": 0.5}, "ce_weight and label_smoothing_factor are of the cross-entropy"),
        ("dice", {}, {"smoothing": 0.1}, "ce_weight and label_smoothing_factor are of the cross-entropy"),
        ("dice", {"weight": -1}, {}, "The weight of dice is -1; it must be 0 or more"),
    ],
)
def test_what_is_not_there_is_refused(names, kwargs, options, message):
    with pytest.raises(ValueError, match=message):
        create_label_losses(names, kwargs, **options)
