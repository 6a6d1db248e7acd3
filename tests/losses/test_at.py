import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.at import attention_distance


def public_case():
    """CIRKD dab64db, losses/at.py: torch seed 1, student randn(2, 16, 12, 20), teacher randn(2, 32, 12, 20)."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, channels, 12, 20, generator=generator) for channels in (16, 32))
    return student.double().requires_grad_(), teacher.double()


def by_loops(student, teacher):
    """Sum over the positions, mean over the images."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        vectors = []
        for feature in (s, t):
            q = [feature[:, y, x].pow(2).mean() for y in range(s.shape[1]) for x in range(s.shape[2])]
            length = sum(value**2 for value in q) ** 0.5
            vectors.append([value / length for value in q])
        total = total + sum((a - b) ** 2 for a, b in zip(*vectors, strict=True))
    return total / len(student)


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 12)])
def test_value_and_gradient_are_those_of_the_formula_written_as_loops(reduction, divisor):
    student, teacher = (x[:, :3, :3, :4].detach() for x in public_case())
    actual, expected = (student.clone().requires_grad_() for _ in range(2))
    value = attention_distance(actual, teacher, reduction)
    value.backward()
    formula = by_loops(expected, teacher) / divisor
    formula.backward()
    torch.testing.assert_close(value, formula, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-10, atol=1e-15)


def test_value_and_gradient_are_those_of_the_public_code():
    student, teacher = public_case()
    value = attention_distance(student, teacher, "mean")
    value.backward()
    assert value.item() == pytest.approx(0.0007470507595097202, rel=1e-12)
    assert student.grad.norm().item() == pytest.approx(7.475914970944685e-05, rel=1e-12)
    first = torch.tensor([8.867897918207746e-07, 3.8367087995538895e-07, 4.7192088459269144e-07])
    torch.testing.assert_close(student.grad.flatten()[:3].float(), first, rtol=2e-5, atol=0.0)


def test_scale_sign_and_order_of_the_channels_cost_nothing():
    _, teacher = public_case()
    assert attention_distance(-3.0 * teacher.flip(1), teacher) < 1e-15
    twice = torch.cat((teacher, teacher), dim=1)
    assert attention_distance(twice, teacher) < 1e-15


def test_the_sum_does_not_depend_on_the_size_of_the_crop_and_the_mean_does():
    student, teacher = public_case()
    tiled = [x.repeat(1, 1, 2, 3) for x in (student, teacher)]
    torch.testing.assert_close(attention_distance(*tiled), attention_distance(student, teacher))
    torch.testing.assert_close(attention_distance(*tiled, "mean") * 6, attention_distance(student, teacher, "mean"))


def test_both_reductions_weigh_the_same_at_the_size_of_the_published_maps():
    maps = [{"decoder": torch.randn(1, c, 64, 128, generator=torch.Generator().manual_seed(c))} for c in (8, 16)]
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    total, mean = (create_loss("at", STUDENT, TEACHER, reduction=kind)(*maps, labels)["at"] for kind in ("sum", "mean"))
    torch.testing.assert_close(total, mean)
    torch.testing.assert_close(mean, 1e4 * attention_distance(maps[0]["decoder"], maps[1]["decoder"], "mean"))


@pytest.mark.parametrize(("student_size", "teacher_size"), [(12, 6), (5, 8), (4, 4)])
def test_the_larger_of_two_maps_is_averaged_down_as_in_repdistiller(student_size, teacher_size):
    shapes = (2, 3, student_size, student_size), (2, 4, teacher_size, teacher_size)
    student, teacher = (torch.rand(shape, generator=torch.Generator().manual_seed(0)).double() for shape in shapes)
    size = min(student_size, teacher_size)
    expected = by_loops(*(F.adaptive_avg_pool2d(x, (size, size)) for x in (student, teacher)))
    torch.testing.assert_close(attention_distance(student, teacher), expected)


def test_maps_of_different_shape_are_compared_at_the_smaller_height_and_width():
    student, teacher = public_case()
    tall, wide = student.detach()[:, :, :, :10], teacher[:, :, :6]
    small = [tall.unflatten(2, (6, 2)).mean(3), wide.unflatten(3, (10, 2)).mean(4)]
    torch.testing.assert_close(attention_distance(tall, wide), attention_distance(*small))


def test_several_taps_are_added():
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    taps = ("low_level", "backbone", "decoder")
    alone = [create_loss("at", STUDENT, TEACHER, taps=(tap,))(*arguments)["at"] for tap in taps]
    together = create_loss("at", STUDENT, TEACHER, taps=taps)(*arguments)["at"]
    torch.testing.assert_close(together, torch.stack(alone).sum())


def test_no_taps_and_an_unknown_reduction_are_refused():
    with pytest.raises(ValueError, match="taps is empty; at needs at least one map"):
        create_loss("at", STUDENT, TEACHER, taps=())
    with pytest.raises(ValueError, match="reduction is 'none'; it must be one of 'sum', 'mean'"):
        create_loss("at", STUDENT, TEACHER, reduction="none")
