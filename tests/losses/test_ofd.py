import dataclasses
import math

import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels
from torch import distributed as dist
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.adapters import align
from hf_segkd.losses.base import TrainingRequest
from hf_segkd.losses.ofd import TeacherMargin, margin_of_norm, partial_l2_distance
from hf_segkd.types import NetworkSpec

# clovaai/overhaul-distillation 76344a8, Segmentation/distiller.py.
GAMMA = [1.0, 0.5, 2.0, 0.3, 1.0, -1.0, 1.0]
BETA = [0.0, 0.2, -1.0, 1.2, 3.0, 0.5, 3.2]
MARGINS = [-0.7978845834732056, -0.33437809348, -2.01832079887, -0.90000003576, -0.28309866786, -0.64107775688, -3.0]
CASE_MARGINS = [-0.72690993547, -0.14959166944, -1.60816621780, -0.63700670004, -0.99754941463]


def official_draws():
    """Seed 6: student and teacher randn(2, 8, 6, 10), gamma rand(8) + 0.2, beta randn(8) * 1.5."""
    generator = torch.Generator().manual_seed(6)
    student, teacher = (torch.randn(2, 8, 6, 10, generator=generator) for _ in range(2))
    gamma = torch.rand(8, generator=generator) + 0.2
    beta = torch.randn(8, generator=generator) * 1.5
    return student, teacher, gamma, beta


def official_case():
    """The maps in float64, and the margins."""
    student, teacher, gamma, beta = official_draws()
    return student.double(), teacher.double(), margin_of_norm(gamma, beta)


def batch():
    return make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()


def distances(loss, student, teacher):
    """The partial distance of each tap, before its divisor."""
    return {
        tap: partial_l2_distance(connector(student[tap]), teacher[tap], margin.value)
        for tap, connector, margin in zip(loss.divisors, loss.connectors, loss.margins, strict=True)
    }


def test_value_and_gradient_are_the_three_cases_of_the_paper_written_as_a_loop():
    student, teacher, margin = (x[:, :3, :2, :5] if x.dim() == 4 else x[:3].double() for x in official_case())
    expected, gradient = 0.0, torch.zeros_like(student)
    for index in torch.cartesian_prod(*map(torch.arange, student.shape)).tolist():
        s, t, m = student[tuple(index)].item(), teacher[tuple(index)].item(), margin[index[1]].item()
        target = t if t > m else m  # margin ReLU
        if s <= target and target <= 0:
            continue
        expected += (s - target) ** 2
        gradient[tuple(index)] = 2 * (s - target)
    student = student.clone().requires_grad_()
    value = partial_l2_distance(student, teacher, margin)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(student.grad, gradient, rtol=1e-12, atol=0.0)


def test_value_and_gradient_are_those_of_the_authors_code():
    student, teacher, margin = official_case()
    student.requires_grad_()
    spec = NetworkSpec({"decoder_pre": 8}, 5, norms={"decoder_pre": official_draws()[2:]})
    loss = create_loss("ofd", spec, spec, weight=1.0, divisors={"decoder_pre": 1}, connectors=False)
    assert torch.equal(loss.margins[0].value, margin)
    labels = torch.zeros(2, 6, 10, dtype=torch.long)
    value = loss({"decoder_pre": student}, {"decoder_pre": teacher}, labels)["ofd"]
    value.backward()
    assert value.item() == pytest.approx(1465.667901350524, rel=1e-12)
    assert student.grad.norm().item() == pytest.approx(76.56808477036694, rel=1e-12)
    first = torch.tensor([0.0, -1.3513174057006836, -4.001224040985107, -2.976426601409912])
    torch.testing.assert_close(student.grad.flatten()[:4].float(), first, rtol=2e-5, atol=0.0)
    torch.testing.assert_close(margin[:5], torch.tensor(CASE_MARGINS), rtol=1e-6, atol=0.0)


def test_margins_are_those_of_the_authors_code():
    torch.testing.assert_close(
        margin_of_norm(torch.tensor(GAMMA), torch.tensor(BETA)), torch.tensor(MARGINS), rtol=1e-6, atol=0.0
    )


@pytest.mark.parametrize(("gamma", "beta"), [(1.0, 0.0), (-0.7, 0.9), (0.2, -0.6), (1.5, 4.5)])
def test_a_margin_is_the_mean_of_the_negative_half_of_a_normal_distribution(gamma, beta):
    x = torch.linspace(-40.0, 0.0, 2_000_001, dtype=torch.float64)
    density = torch.exp(-(((x - beta) / gamma) ** 2) / 2)
    expected = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
    actual = margin_of_norm(torch.tensor([gamma]), torch.tensor([beta]))
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_channel_without_variance_has_its_constant_value_as_margin_or_none():
    margin = margin_of_norm(torch.zeros(3), torch.tensor([-0.5, 0.0, 0.5]))
    assert margin.tolist() == [-0.5, 0.0, 0.0]


def test_what_the_relu_hides_costs_nothing():
    student, teacher, margin = official_case()
    value = partial_l2_distance(student, teacher, margin)
    target = torch.maximum(teacher, margin[:, None, None])
    hidden = (student <= target) & (target <= 0)
    assert hidden.any()
    assert torch.equal(partial_l2_distance(torch.where(hidden, student - 9, student), teacher, margin), value)
    low = teacher <= margin[:, None, None]
    assert low.any()
    assert torch.equal(partial_l2_distance(student, torch.where(low, teacher - 9, teacher), margin), value)
    assert partial_l2_distance(target, teacher, margin) == 0.0


def test_a_batch_costs_the_sum_of_its_images():
    student, teacher, margin = official_case()
    images = [partial_l2_distance(student[i : i + 1], teacher[i : i + 1], margin) for i in range(2)]
    torch.testing.assert_close(partial_l2_distance(student, teacher, margin), images[0] + images[1])


def test_the_term_adds_six_taps_over_their_divisors_with_the_published_weight():
    student, teacher, labels = batch()
    loss = create_loss("ofd", STUDENT, TEACHER)
    parts = distances(loss, student, teacher)
    divisors = {"stage1_pre": 8, "stage2_pre": 4, "stage3_pre": 2, "stage4_pre": 1, "encoder_pre": 1, "decoder_pre": 16}
    assert parts.keys() == divisors.keys()
    expected = sum(parts[tap] / divisors[tap] for tap in divisors)
    torch.testing.assert_close(loss.unweighted(student, teacher, labels)["ofd"], expected)
    torch.testing.assert_close(loss(student, teacher, labels)["ofd"], 1e-5 * expected)


def test_the_official_preset_divides_by_the_batch_and_explicit_arguments_win():
    student, teacher, labels = batch()
    official = create_loss("ofd", STUDENT, TEACHER, preset="official")
    assert official.request == TrainingRequest(1, divide_by_batch=True, teacher_batch_statistics=True)
    expected = sum(part / official.divisors[tap] for tap, part in distances(official, student, teacher).items()) / 2
    torch.testing.assert_close(official.unweighted(student, teacher, labels)["ofd"], expected)
    assert create_loss("ofd", STUDENT, TEACHER).request == TrainingRequest(0, False, False)
    explicit = create_loss("ofd", STUDENT, TEACHER, preset="official", divide_by_batch=False, connector_epochs=0)
    assert explicit.request == TrainingRequest(0, divide_by_batch=False, teacher_batch_statistics=True)


@pytest.mark.parametrize("connectors", [False, True])
def test_without_margins_the_term_is_mmrazors(connectors):
    """Sum of (s - t)^2 where s > t or t > 0, over 1000 times the number of images (mmrazor 90c7af1, ofd_loss.py)."""
    student, teacher, labels = batch()
    kwargs = {"divisors": {"decoder_pre": 1000}, "divide_by_batch": True, "weight": 1.0, "connectors": connectors}
    learner = STUDENT if connectors else TEACHER
    student = student if connectors else make_features(TEACHER, 3)
    loss = create_loss("ofd", learner, TEACHER, margins="none", **kwargs)
    value = loss(student, teacher, labels)["ofd"]
    s, t = loss.connectors[0](student["decoder_pre"]), teacher["decoder_pre"]
    assert connectors or s is student["decoder_pre"]
    expected = F.mse_loss(s, t, reduction="none")[(s > t) | (t > 0)].sum() / 2 / 1000
    gradients = [torch.autograd.grad(v, student["decoder_pre"], retain_graph=True)[0] for v in (value, expected)]
    torch.testing.assert_close((value, gradients[0]), (expected, gradients[1]))
    with_margins = create_loss("ofd", learner, TEACHER, **kwargs)(student, teacher, labels)["ofd"]
    assert not torch.isclose(with_margins, expected)


def test_connectors_learn_first_and_go_on_learning():
    loss = create_loss("ofd", STUDENT, TEACHER, preset="official")
    assert list(loss.connector_parameters()) == list(loss.connectors.parameters())
    assert list(loss.finished_parameters()) == []
    attnfd = create_loss("attnfd", STUDENT, TEACHER, preset="official")
    assert list(attnfd.finished_parameters()) == list(attnfd.connectors.parameters())
    official = {"preset": "official"}
    both = create_loss("ofd,attnfd", STUDENT, TEACHER, ofd=official, attnfd=official)
    assert both.request.teacher_batch_statistics is None  # they differ
    connectors = [loss.connectors.parameters() for loss in both.losses]
    assert list(both.connector_parameters()) == [parameter for group in connectors for parameter in group]
    assert list(both.finished_parameters()) == list(both.losses[1].connectors.parameters())


def test_connectors_of_the_papers_pair_have_as_many_parameters_as_the_authors():
    widths = {"resnet18": (64, 128, 256, 512, 256, 256), "resnet101": (256, 512, 1024, 2048, 256, 256)}
    taps = create_loss("ofd", STUDENT, TEACHER).divisors
    specs = [NetworkSpec(dict(zip(taps, channels, strict=True)), 21) for channels in widths.values()]
    assert sum(p.numel() for p in create_loss("ofd", *specs).parameters()) == 1_532_416


def test_margins_come_from_the_teachers_norms_and_are_saved():
    loss = create_loss("ofd", STUDENT, TEACHER)
    state = loss.state_dict()
    for i, tap in enumerate(loss.divisors):
        assert torch.equal(state[f"margins.{i}.value"], margin_of_norm(*TEACHER.norms[tap]))
    assert not any(name.endswith("count") for name in state)


def test_a_tap_without_a_norm_has_the_mean_of_its_negative_responses_so_far():
    margin = TeacherMargin(3, None)
    maps = [torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(i)) - 0.3 for i in range(3)]
    maps[0][:, 1] = 1.0  # no negative response yet
    assert torch.equal(margin(maps[0])[1], torch.tensor(0.0))
    margin(maps[1])
    both = torch.cat(maps[:2])
    expected = torch.stack([both[:, c][both[:, c] < 0].mean() for c in range(3)])
    torch.testing.assert_close(margin.value, expected)
    assert margin.count.tolist() == [(both[:, c] < 0).sum() for c in range(3)]
    before = margin.value.clone()
    assert torch.equal(margin.eval()(maps[2]), before)


def test_an_overflow_does_not_spoil_an_estimated_margin():
    margin = TeacherMargin(1, None)
    margin(torch.tensor([-1.0, -float("inf"), float("nan"), -3.0]).reshape(1, 1, 2, 2))
    assert margin.value.tolist() == [-2.0]


def test_an_estimated_margin_is_that_of_all_processes(monkeypatch):
    other = TeacherMargin(2, None)
    others_map = torch.randn(2, 2, 3, 3)
    others_sums = (others_map.clamp_max(0).sum((0, 2, 3)), (others_map < 0).float().sum((0, 2, 3)))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(torch.stack(others_sums)))
    mine = TeacherMargin(2, None)
    my_map = torch.randn(2, 2, 3, 3)
    mine(my_map)
    monkeypatch.undo()
    other(torch.cat([my_map, others_map]))
    torch.testing.assert_close(mine.value, other.value)
    assert torch.equal(mine.count, other.count)


def test_taps_without_norms_are_estimated_in_the_loss_before_they_are_used():
    student, teacher, labels = batch()
    bare = dataclasses.replace(TEACHER, norms={})
    loss = create_loss("ofd", STUDENT, bare, divisors={"stage4_pre": 3.0})
    value = loss.unweighted(student, teacher, labels)["ofd"]
    flat = teacher["stage4_pre"].detach().movedim(1, 0).flatten(1)
    margin = torch.stack([row[row < 0].mean() for row in flat])
    expected = partial_l2_distance(loss.connectors[0](student["stage4_pre"]), teacher["stage4_pre"], margin) / 3
    torch.testing.assert_close(value, expected)


def test_a_teacher_of_another_size_is_brought_to_the_students():
    student, _, labels = batch()
    teacher = make_features(TEACHER, 2, sizes={}, default_size=(17, 25))
    loss = create_loss("ofd", STUDENT, TEACHER, divisors={"stage4_pre": 1.0})
    aligned = {"stage4_pre": align(teacher["stage4_pre"], student["stage4_pre"])}
    (expected,) = distances(loss, student, aligned).values()
    torch.testing.assert_close(loss.unweighted(student, teacher, labels)["ofd"], expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "code"}, "preset is 'code'; it must be one of 'default', 'official'"),
        ({"connectors": False}, "stage1_pre has 6 channels in the student and 12 in the teacher"),
        ({"connectors": False, "preset": "official"}, "so connector_epochs, in which they learn alone, must be 0"),
        ({"margins": "relu"}, "margins is 'relu'; it must be one of 'teacher', 'none'"),
        ({"divisors": {}}, "divisors is {}; ofd needs features"),
        ({"divisors": ["decoder_pre"]}, "ofd needs features, each with its divisor"),
        ({"divisors": {"stage1_pre": 0}}, "The divisor of stage1_pre is 0; it must be positive"),
        ({"divisors": {"stage9_pre": 1}}, r"reads the student's \['stage9_pre'\], but that network offers"),
        ({"connector_epochs": -1}, "connector_epochs must be a whole number from 0, got -1"),
        ({"connector_epochs": True}, "connector_epochs must be a whole number from 0, got True"),
        ({"weight": math.nan}, "weight of ofd is nan"),
    ],
)
def test_wrong_values_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_loss("ofd", STUDENT, TEACHER, **kwargs)


def test_a_network_with_two_maps_lists_what_it_lacks():
    foreign = NetworkSpec(channels={"encoder_pre": 8, "decoder_pre": 8, "stage1_pre": 4, "stage4_pre": 8}, num_labels=5)
    with pytest.raises(ValueError, match=r"reads the student's \['stage2_pre', 'stage3_pre'\]"):
        create_loss("ofd", foreign, TEACHER)
