import pytest
import torch
from loss_cases import STUDENT, TEACHER, draw, make_features, make_labels
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.kd import pixel_wise_divergence
from hf_segkd.types import NetworkSpec


@pytest.mark.parametrize(("reduction", "divisor"), [("pixel_mean", 12), ("element_mean", 48), ("image_mean", 2)])
def test_the_value_is_the_formula_written_as_a_loop_over_pixels(reduction, divisor):
    student, teacher = (x.double() for x in draw(0, (2, 4, 3, 2), (2, 4, 3, 2)))
    expected = 0.0
    for image in range(2):
        for row in range(3):
            for column in range(2):
                p = torch.softmax(teacher[image, :, row, column] / 3.0, 0)
                q = torch.softmax(student[image, :, row, column] / 3.0, 0)
                expected += (p * (p / q).log()).sum() * 9.0 / divisor
    spec = NetworkSpec(channels={"logits": 4}, num_labels=4)
    loss = create_loss("kd", spec, spec, temperature=3.0, reduction=reduction)
    actual = loss({"logits": student}, {"logits": teacher}, make_labels())["kd"]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0.0)


def test_value_and_gradient_are_those_of_the_public_code():
    # CIRKD dab64db, losses/kd.py at temperature 1: torch seed 0, student and teacher draw(2, 19, 12, 20) * 3.
    student, teacher = ((x * 3.0).double() for x in draw(0, (2, 19, 12, 20), (2, 19, 12, 20)))
    student.requires_grad_()
    value = pixel_wise_divergence(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(4.977226020341976, rel=1e-12)
    assert student.grad.norm().item() == pytest.approx(0.041396366484140655, rel=1e-9)
    first = torch.tensor([-5.360312115954002e-06, -1.6110401702462696e-05, 1.4008363905304577e-05])
    torch.testing.assert_close(student.grad.flatten()[:3].float(), first, rtol=2e-5, atol=1e-10)


def test_equal_logits_and_logits_shifted_by_a_constant_per_pixel_cost_nothing():
    (student,) = draw(0, (2, 4, 3, 2))
    offset = torch.arange(6.0).reshape(1, 1, 3, 2)
    assert pixel_wise_divergence(student, student) == 0.0
    assert abs(pixel_wise_divergence(student, student + offset)) < 1e-6


def test_a_hot_temperature_tends_to_the_squared_distance_of_centred_logits():
    student, teacher = (x.double() for x in draw(0, (2, 4, 3, 2), (2, 4, 3, 2)))
    difference = student - teacher
    centred = difference - difference.mean(1, keepdim=True)
    limit = centred.square().sum(1).mean() / (2 * 4)
    torch.testing.assert_close(pixel_wise_divergence(student, teacher, 1e4), limit, rtol=1e-3, atol=0.0)


def test_drop_ignored_averages_over_labelled_pixels_alone():
    student, teacher = make_features(STUDENT, 1), make_features(TEACHER, 2)
    labels = make_labels()
    valid = F.interpolate(labels[:, None].float(), size=(9, 13), mode="nearest")[:, 0] != 255
    rows = [side["logits"].movedim(1, -1)[valid].T[None, :, :, None] for side in (student, teacher)]
    dropped = create_loss("kd", STUDENT, TEACHER, drop_ignored=True)(student, teacher, labels)
    torch.testing.assert_close(dropped["kd"], pixel_wise_divergence(*rows))
    everything = create_loss("kd", STUDENT, TEACHER)(student, teacher, labels)
    assert dropped["kd"] != everything["kd"]


def test_a_batch_of_ignored_pixels_costs_nothing_when_they_are_dropped():
    loss = create_loss("kd", STUDENT, TEACHER, drop_ignored=True)
    terms = loss(make_features(STUDENT, 1), make_features(TEACHER, 2), torch.full((2, 33, 49), 255))
    assert terms["kd"] == 0.0
    assert terms["kd"].requires_grad


def test_a_temperature_of_zero_and_an_unknown_reduction_are_refused():
    with pytest.raises(ValueError, match="reduction is 'mean'; it must be one of 'pixel_mean'"):
        create_loss("kd", STUDENT, TEACHER, reduction="mean")
    with pytest.raises(ValueError, match="temperature is 0; it must be positive"):
        create_loss("kd", STUDENT, TEACHER, temperature=0)


@pytest.mark.parametrize("name", ["kd", "cwd", "fakd_pd", "fakd_cwd"])
def test_other_class_counts_are_refused_by_losses_on_logits(name):
    other = NetworkSpec(channels={**TEACHER.channels, "logits": 7}, num_labels=7)
    with pytest.raises(ValueError, match="student has 5 classes and the teacher 7"):
        create_loss(name, STUDENT, other)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'attnfd'"):
        create_loss("atnfd", STUDENT, TEACHER)
