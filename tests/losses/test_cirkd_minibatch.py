import pytest
import torch
from loss_cases import Allocations, assert_same_with_gradient, doubles, draw
from torch.nn import functional as F

from hf_segkd.losses import cirkd_minibatch
from hf_segkd.losses.cirkd_minibatch import minibatch_divergence


def all_pairs(student, teacher, temperature=0.1):
    """The mini-batch term with whole n x n maps, image by image."""
    images, pixels = len(student), student[0, 0].numel()
    total = 0.0
    for i in range(images):
        for j in range(images):
            log_p, log_q = (
                torch.log_softmax(
                    F.normalize(x[i].flatten(1), dim=0).T @ F.normalize(x[j].flatten(1), dim=0) / temperature, 1
                )
                for x in (teacher, student)
            )
            total = total + (log_p.exp() * (log_p - log_q)).sum()
    return total / (images**2 * pixels)


@pytest.mark.parametrize("temperature", [0.03, 0.1, 1.0])
def test_the_minibatch_term_and_its_gradient_are_the_formula_over_all_ordered_pairs_of_images(temperature):
    student, teacher = doubles(0, (3, 4, 3, 5), (3, 6, 3, 5))
    value = minibatch_divergence(student, teacher, temperature)
    assert_same_with_gradient(value, all_pairs(student, teacher, temperature), student)
    assert torch.autograd.gradcheck(lambda s: minibatch_divergence(s, teacher, temperature), student)


def test_maps_that_take_several_tiles_give_the_same_and_no_n_x_n_map_is_ever_made():
    student, teacher = doubles(1, (2, 3, 30, 35), (2, 4, 30, 35))
    with Allocations() as allocations:
        value = minibatch_divergence(student, teacher)
        (gradient,) = torch.autograd.grad(value, student)
    assert allocations.largest < 1050 * 1050 * 8 / 2
    expected = all_pairs(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0], rtol=1e-7, atol=1e-12)


def test_the_minibatch_term_of_512_channels_at_64_x_64_takes_less_than_200_mb():
    student, teacher = draw(1, (2, 512, 32, 32), (2, 512, 32, 32))  # a quarter of the pixels
    with Allocations() as allocations:
        minibatch_divergence(student.requires_grad_(), teacher).backward()
    assert allocations.peak < 50e6


def test_the_minibatch_term_is_that_of_the_authors_code():
    # CIRKD 2d8ad0f, losses/cirkd_mini_batch.py: torch seed 17, student randn(2, 16, 12, 20), teacher 32 channels.
    student, teacher = draw(17, (2, 16, 12, 20), (2, 32, 12, 20))
    student.requires_grad_()
    value = minibatch_divergence(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(2.1254825592041016, rel=1e-6)
    assert student.grad.norm().item() == pytest.approx(0.03410887831891886, rel=1e-6)
    first = torch.tensor([-9.87788662314415e-05, 0.0004444235819391906, -0.0002001090906560421])
    torch.testing.assert_close(student.grad.flatten()[:3], first, rtol=2e-5, atol=1e-10)


def test_pooling_averages_cells_first_and_those_at_the_edge_over_what_they_have():
    student, teacher = doubles(2, (2, 4, 5, 7), (2, 4, 5, 7))
    cells = []
    for features in (student, teacher):
        columns = [features[..., x : x + 2].mean(-1) for x in range(0, 7, 2)]
        rows = [torch.stack(columns, -1)[..., y : y + 2, :].mean(-2) for y in range(0, 5, 2)]
        cells.append(torch.stack(rows, -2))
    assert cells[0].shape == (2, 4, 3, 4)
    assert_same_with_gradient(minibatch_divergence(student, teacher, pooling=2), all_pairs(*cells), student)


def test_equal_maps_cost_nothing_and_neither_length_nor_order_of_the_vectors_matters():
    student, teacher = doubles(3, (2, 4, 3, 5), (2, 4, 3, 5))
    expected = minibatch_divergence(student, teacher)
    assert abs(minibatch_divergence(teacher, 2.0 * teacher)) < 1e-12
    lengths = torch.rand(2, 1, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    torch.testing.assert_close(minibatch_divergence(student * lengths, teacher), expected)
    torch.testing.assert_close(minibatch_divergence(student.flip(0, 2), teacher.flip(0, 2)), expected)


def test_opposite_vectors_at_the_lowest_temperature_are_finite():
    student = torch.ones(1, 2, 2, 2)
    student[..., 0, 0] = -1.0
    student.requires_grad_()
    value = minibatch_divergence(student, student.detach().flip(2), temperature=0.023)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_it_makes_no_difference_how_many_tiles_are_kept(monkeypatch):
    student, teacher = doubles(1, (2, 3, 30, 35), (2, 4, 30, 35))
    gradients = []
    for kept in (0, 100, 1000):  # of an image's three tiles: none, some, all
        monkeypatch.setattr(cirkd_minibatch, "KEPT", kept)
        gradients += torch.autograd.grad(minibatch_divergence(student, teacher), student)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
