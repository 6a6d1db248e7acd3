import pytest
import torch
from loss_cases import NUM_LABELS, STUDENT, TEACHER, draw, make_features, make_labels
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.ickd import inter_channel_distance, split_patches
from hf_segkd.types import NetworkSpec


def randn(seed, *shapes):
    return [tensor.double() for tensor in draw(seed, *shapes)]


def by_loops(student, teacher):
    """One patch."""
    total, (images, channels) = 0.0, student.shape[:2]
    for image in range(images):
        for c in range(channels):
            rows = []
            for side in (student[image], teacher[image]):
                row = [(side[c] * side[d]).sum() for d in range(channels)]
                length = sum(value**2 for value in row) ** 0.5
                rows.append([value / length for value in row])
            total = total + sum((a - b) ** 2 for a, b in zip(*rows, strict=True))
    return total / (images * channels)


def test_value_and_gradient_are_those_of_the_formula_written_as_loops():
    student, teacher = randn(0, (2, 3, 4, 5), (2, 3, 4, 5))
    actual, expected = (student.clone().requires_grad_() for _ in range(2))
    value = inter_channel_distance(actual, teacher)
    value.backward()
    formula = by_loops(expected, teacher)
    formula.backward()
    torch.testing.assert_close(value, formula, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-9, atol=1e-14)


def test_patches_are_cut_evenly_and_averaged():
    student, teacher = randn(0, (2, 3, 5, 7), (2, 3, 5, 7))
    rows, columns = [(0, 3), (3, 5)], [(0, 3), (3, 5), (5, 7)]
    parts = [
        by_loops(student[:, :, top:bottom, left:right], teacher[:, :, top:bottom, left:right])
        for top, bottom in rows
        for left, right in columns
    ]
    expected = torch.stack(parts).mean()
    torch.testing.assert_close(inter_channel_distance(student, teacher, (2, 3)), expected, rtol=1e-12, atol=0.0)
    assert split_patches(student, (2, 3)).shape == (12, 3, 9)


def test_value_and_gradient_are_those_of_the_authors_code():
    # ICKD 403b8d3, Cifar100/distiller_zoo/ICKD.py, in float64.
    student, teacher, weight = randn(4, (2, 16, 12, 20), (2, 32, 12, 20), (32, 16, 1, 1))
    spec = NetworkSpec(channels={"decoder": 16}, num_labels=NUM_LABELS)
    teacher_spec = NetworkSpec(channels={"decoder": 32}, num_labels=NUM_LABELS)
    loss = create_loss("ickd", spec, teacher_spec, weight=1.0).double()
    loss.embed[0].weight.data.copy_(weight * 0.25)
    student.requires_grad_()
    value = loss({"decoder": student}, {"decoder": teacher}, make_labels())["ickd"]
    value.backward()
    assert value.item() == pytest.approx(0.9350451571453835, rel=1e-6)  # the weight was scaled in float32
    assert student.grad.norm().item() == pytest.approx(0.013938073198168864, rel=1e-6)
    first = torch.tensor([7.836840813979506e-05, -0.00020988605683669448, -8.28608826850541e-05])
    torch.testing.assert_close(student.grad.flatten()[:3].float(), first, rtol=2e-5, atol=0.0)


def test_value_and_gradient_on_logits_are_those_of_aicsd():
    # AICSD f99949e, distiller.py: seed 0, randn(2, 21, 12, 20) * 3, in float64.
    student, teacher = (3.0 * x for x in randn(0, (2, 21, 12, 20), (2, 21, 12, 20)))
    spec = NetworkSpec(channels={"logits": 21}, num_labels=21)
    student.requires_grad_()
    loss = create_loss("ickd", spec, spec, tap="logits", weight=1.0)
    value = loss({"logits": student}, {"logits": teacher}, make_labels())["ickd"]
    value.backward()
    assert not list(loss.parameters())
    assert value.item() == pytest.approx(0.1645929421720632, rel=1e-6)
    assert student.grad.norm().item() == pytest.approx(0.004927894484429755, rel=1e-6)
    first = torch.tensor([-3.4657041396712884e-05, -4.52236736236955e-06, 3.033194843737874e-06])
    torch.testing.assert_close(student.grad.flatten()[:3].float(), first, rtol=2e-5, atol=1e-10)


def test_the_scale_of_the_map_and_the_order_of_the_positions_cost_nothing():
    (student,) = randn(0, (2, 3, 4, 5))
    assert inter_channel_distance(-2.0 * student.flip(2), student) < 1e-20
    larger = F.interpolate(student, scale_factor=2, mode="nearest")
    assert inter_channel_distance(larger, student, (2, 1)) < 1e-20


def test_the_imagenet_variant_divides_by_the_images_once_more_and_has_its_own_weight():
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()

    def value(**kwargs):
        torch.manual_seed(0)
        return create_loss("ickd", STUDENT, TEACHER, **kwargs)(*arguments)["ickd"]

    logits = {"tap": "logits", "weight": 1.0}  # without an embedding
    torch.testing.assert_close(value(variant="imagenet", **logits), value(**logits) / 2)
    torch.testing.assert_close(value(variant="imagenet"), 500 * value(variant="imagenet", weight=1.0))
    torch.testing.assert_close(value(), 2.5 * value(weight=1.0))


def test_there_is_one_embedding_and_only_where_it_is_wanted():
    shapes = [tuple(p.shape) for p in create_loss("ickd", STUDENT, TEACHER).parameters()]
    assert shapes == [(16, 8, 1, 1), (16,), (16,)]
    imagenet = create_loss("ickd", STUDENT, TEACHER, variant="imagenet")
    assert [tuple(p.shape) for p in imagenet.parameters()] == [(16, 8, 3, 3), (16,), (16,)]
    assert not list(create_loss("ickd", STUDENT, STUDENT, embed=False).parameters())
    assert not list(create_loss("ickd", STUDENT, TEACHER, tap="logits").parameters())


def test_without_embedding_the_widths_must_be_equal():
    with pytest.raises(ValueError, match="decoder has 8 channels and the teacher's 16"):
        create_loss("ickd", STUDENT, TEACHER, embed=False)
    other = NetworkSpec(channels={"logits": 7}, num_labels=7)
    with pytest.raises(ValueError, match="student has 5 classes and the teacher 7"):
        create_loss("ickd", STUDENT, other, tap="logits")


def test_more_patches_than_positions_and_unknown_variants_are_refused():
    (student,) = randn(0, (2, 3, 9, 13))
    with pytest.raises(ValueError, match="map of 9 x 13 has no 10 x 10 patches; ask for fewer"):
        inter_channel_distance(student, student, (10, 10))
    with pytest.raises(ValueError, match="variant is 'coco'; it must be one of 'cifar', 'imagenet'"):
        create_loss("ickd", STUDENT, TEACHER, variant="coco")
