import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels

from hf_segkd.losses import create_loss
from hf_segkd.losses.dist import correlation_distances
from hf_segkd.types import NetworkSpec


def official_case():
    """DIST_KD 2418f18, segmentation: torch seed 0, student and teacher randn(2, 19, 12, 20) * 3, in float64."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = ((torch.randn(2, 19, 12, 20, generator=generator) * 3.0).double() for _ in range(2))
    return student.requires_grad_(), teacher


def correlation(a, b):
    a, b = a - a.sum() / len(a), b - b.sum() / len(b)
    return (a * b).sum() / ((a * a).sum() ** 0.5 * (b * b).sum() ** 0.5 + 1e-8)


def by_loops(student, teacher, temperature):
    sides = []
    for logits in (student, teacher):
        images, _, height, width = logits.shape
        pixels = [(i, y, x) for i in range(images) for y in range(height) for x in range(width)]
        exponentials = [(logits[i, :, y, x] / temperature).exp() for i, y, x in pixels]
        sides.append(torch.stack([e / e.sum() for e in exponentials]))
    inter = [correlation(s, t) for s, t in zip(*sides, strict=True)]
    intra = [correlation(s, t) for s, t in zip(sides[0].T, sides[1].T, strict=True)]
    return 1 - sum(inter) / len(inter), 1 - sum(intra) / len(intra)


@pytest.mark.parametrize("term", [0, 1], ids=["inter", "intra"])
def test_value_and_gradient_are_those_of_the_formula_written_as_loops(term):
    student, teacher = (x[:, :4, :2, :3].detach() for x in official_case())
    actual, expected = (student.clone().requires_grad_() for _ in range(2))
    value = correlation_distances(actual, teacher, 2.0)[term]
    value.backward()
    formula = by_loops(expected, teacher, 2.0)[term]
    formula.backward()
    torch.testing.assert_close(value, formula, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-9, atol=1e-14)


def test_value_and_gradient_are_those_of_the_authors_code():
    student, teacher = official_case()
    value = sum(correlation_distances(student, teacher))
    value.backward()
    assert value.item() == pytest.approx(1.980906585571948, rel=1e-12)
    assert student.grad.norm().item() == pytest.approx(0.011641989709935014, rel=1e-9)
    first = torch.tensor([-5.894280064033808e-10, 1.1262928722999277e-07, 3.5538439533411292e-06])
    torch.testing.assert_close(student.grad.flatten()[:3].float(), first, rtol=2e-5, atol=0.0)


def test_an_offset_per_pixel_and_two_classes_scaled_cost_nothing():
    student, _ = official_case()
    offset = torch.arange(20.0)
    assert sum(correlation_distances(student + offset, student)).abs() < 1e-7
    two_classes = student[:, :2]  # two probabilities correlate with any two others in the same order
    inter, intra = correlation_distances(3.0 * two_classes, two_classes)
    assert inter.abs() < 1e-4
    assert intra > 0


@pytest.mark.parametrize("classes", [16, 19])  # one 16th is exact in fp32, one 19th is not
def test_equal_logits_of_all_classes_give_1_and_no_gradient(classes):
    teacher = official_case()[1][:, :classes].float()
    student = torch.full_like(teacher, 0.3).requires_grad_()
    inter, intra = correlation_distances(student, teacher)
    (inter + intra).backward()
    assert inter == 1.0
    assert intra == 1.0
    assert student.grad.abs().max() == 0.0


def test_a_class_that_is_improbable_everywhere_still_learns():
    student, teacher = (x.detach().float() for x in official_case())
    student[:, 0] -= 20.0
    student.requires_grad_()
    _, intra = correlation_distances(student, teacher)
    intra.backward()
    exact = student.detach().double().requires_grad_()
    correlation_distances(exact, teacher.double())[1].backward()
    gradient = exact.grad[:, 0]
    assert gradient.abs().max() > 1e-6
    torch.testing.assert_close(student.grad[:, 0].double(), gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max())


def test_the_weight_is_that_of_both_terms():
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    plain = create_loss("dist", STUDENT, TEACHER)(*arguments)
    weighed = create_loss("dist", STUDENT, TEACHER, weight=2.0)(*arguments)
    assert weighed.keys() == {"dist_inter", "dist_intra"}
    for term, value in weighed.items():
        torch.testing.assert_close(value, 2.0 * plain[term])


def test_the_logits_of_auxiliary_heads_add_the_same_loss_at_two_fifths_of_the_weight():
    spec = NetworkSpec(channels={"logits": 19, "second": 19}, num_labels=19)
    student, teacher = (x.detach() for x in official_case())
    options = {"temperature": 4.0, "variant": "mmrazor"}
    loss = create_loss("dist", spec, spec, auxiliary_tap="second", weight=3.0, **options)
    sides = [{"logits": x, "second": x.flip(2) + 0.1 * i * x} for i, x in enumerate((student, teacher))]
    terms = loss(*sides, make_labels())
    second = [{"logits": side["second"]} for side in sides]
    expected = create_loss("dist", spec, spec, **options)(*second, make_labels())
    torch.testing.assert_close(terms["dist_auxiliary"], 3.0 * 0.4 * sum(expected.values()))


def test_mmrazor_multiplies_by_the_squared_temperature():
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    inter, intra = correlation_distances(arguments[0]["logits"], arguments[1]["logits"], 4.0)
    plain = create_loss("dist", STUDENT, TEACHER, temperature=4.0)(*arguments)
    torch.testing.assert_close(plain, {"dist_inter": inter, "dist_intra": intra})
    scaled = create_loss("dist", STUDENT, TEACHER, temperature=4.0, variant="mmrazor")(*arguments)
    torch.testing.assert_close(scaled, {"dist_inter": 16.0 * inter, "dist_intra": 16.0 * intra})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"temperature": 0}, "temperature is 0; it must be positive"),
        ({"variant": "code"}, "variant is 'code'; it must be one of 'paper', 'mmrazor'"),
        ({"weight": -1}, "weight is -1; it must be 0 or more"),
        ({"weight": True}, "weight is True; it must be 0 or more"),
        ({"weight": "1", "auxiliary_tap": "logits"}, "weight is '1'; it must be 0 or more"),
        ({"auxiliary_tap": "decoder"}, "logits of the 5 classes, but decoder has 8 channels in the student and 16"),
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        create_loss("dist", STUDENT, TEACHER, **argument)
