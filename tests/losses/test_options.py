"""Every option of a loss's constructor reaches the formula; every default is the documented one."""

import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels
from torch.nn import functional as F

from hf_segkd.losses import LOSSES, create_loss
from hf_segkd.losses.adapters import Connector, align, resize_labels
from hf_segkd.losses.fakd_bounds import augmented_channel_wise_divergence, augmented_pixel_wise_divergence

FAKD_OPTIONS = {
    "fakd_cwd": [
        {"temperature": 2.0},
        {"bound": "tight"},
        {"bound": "direct"},
        {"bound": "isda"},
        {"var_tau_power": 1},
        {"drop_ignored": True},
        {"detach_w": True},
        {"subtract_entropy": False},
    ],
    "fakd_pd": [
        {"temperature": 2.0},
        {"bound": "direct"},
        {"sigma_index": "class"},
        {"drop_ignored": True},
        {"detach_w": True},
        {"subtract_entropy": False},
    ],
}
FORMULAS = {"fakd_cwd": augmented_channel_wise_divergence, "fakd_pd": augmented_pixel_wise_divergence}
FUNCTION_NAMES = {"detach_w": "detach_weight"}


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k, c = STUDENT.num_labels, STUDENT.channels["decoder"]
    student = {"logits": draw(2, k, 5, 6), "decoder": draw(2, c, 5, 6), "classifier_weight": draw(k, c, 1, 1)}
    labels = torch.randint(k, (2, 10, 12), generator=generator)
    labels[:, :2] = 255
    return student, {"logits": draw(2, k, 5, 6)}, labels


def evaluated(name, **options):
    loss = create_loss(name, STUDENT, TEACHER, **options).double()
    student, teacher, labels = batch()
    loss.set_progress(1.0)
    loss(student, teacher, labels)  # statistics of one batch
    loss.eval()
    student["logits"].requires_grad_()
    weight = student["classifier_weight"].requires_grad_()
    value = loss(student, teacher, labels)[name]
    value.backward()
    gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad  # None: nothing reaches the weight
    return loss, student, teacher, labels, value.detach(), gradient.flatten(1)


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name, cases in FAKD_OPTIONS.items() for options in cases], ids=str
)
def test_an_option_of_fakd_does_in_the_loss_what_it_does_in_the_formula(name, options):
    loss, student, teacher, labels, value, gradient = evaluated(name, **options)
    small = resize_labels(labels, (5, 6))
    weight = student["classifier_weight"].detach().flatten(1).requires_grad_()
    arguments = {FUNCTION_NAMES.get(key, key): option for key, option in options.items()}
    expected = FORMULAS[name](
        student["logits"], teacher["logits"], small, weight, loss.statistics.covariance, loss.lambda0, **arguments
    )
    expected = loss.weights[name] * expected
    expected.backward()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=0)
    expected_gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)
    default = evaluated(name)
    assert not (torch.equal(default[4], value) and torch.equal(default[5], gradient))  # the case can tell


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("kd", {"weight": 1.0, "temperature": 1.0, "reduction": "pixel_mean", "drop_ignored": False}),
        ("at", {"weight": None, "reduction": "sum", "taps": ("decoder",)}),
        ("sp", {"weight": 3000.0, "gather": True, "tap": "decoder"}),
        ("ickd", {"variant": "cifar", "weight": None, "patches": (1, 1), "embed": None, "tap": "decoder"}),
        ("dist", {"weight": 1.0, "beta": 1.0, "gamma": 1.0, "temperature": 1.0, "variant": "paper"}),
        ("lad", {"weight": 1.0, "vector": "pixel", "tap": "decoder"}),
        ("fakd_pd", {"lambda0": 1.0, "schedule": "cosine", "bound": "pair", "sigma_index": "pixel", "detach_w": False}),
        ("fakd_cwd", {"lambda0": 1.0, "schedule": "cosine", "bound": "pair", "var_tau_power": 2, "detach_w": False}),
        ("fakd_cwd", {"label_resize": "nearest", "drop_ignored": False, "sync_stats": True, "covariance": None}),
    ],
)
def test_defaults_are_those_of_the_documentation(name, defaults):
    parameters = inspect.signature(LOSSES[name]).parameters
    assert {key: parameters[key].default for key in defaults} == defaults


def test_the_arguments_that_the_documentation_gives_for_public_code_are_taken():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| .* \| `(\w+)` \| `(\{.*\})` \|$", page, flags=re.MULTILINE)
    assert len(rows) > 10
    sides = [replace(spec, channels={**spec.channels, "auxiliary": 5}) for spec in (STUDENT, TEACHER)]
    features = [make_features(spec, seed) for seed, spec in enumerate(sides)]
    for name, arguments in rows:
        terms = create_loss(name, *sides, **json.loads(arguments))(*features, make_labels())
        assert all(value.isfinite() for value in terms.values()), (name, arguments)


@pytest.mark.parametrize(("name", "option"), [("kd", "drop_ignored"), ("sp", "gather"), ("ickd", "embed")])
def test_a_word_for_true_or_false_is_refused(name, option):
    with pytest.raises(ValueError, match=f"{name}'s {option} is 'no'; it must be true or false"):
        create_loss(name, STUDENT, TEACHER, **{option: "no"})


def test_labels_are_resized_as_the_loss_is_told():
    sizes = [
        create_loss("fakd_cwd", STUDENT, TEACHER, label_resize=mode).label_resize
        for mode in ("nearest", "nearest-exact")
    ]
    assert sizes == ["nearest", "nearest-exact"]
    labels = torch.arange(36).reshape(1, 6, 6)
    assert resize_labels(labels, (2, 2), "nearest").tolist() == [[[0, 3], [18, 21]]]
    assert resize_labels(labels, (2, 2), "nearest-exact").tolist() == [[[7, 10], [25, 28]]]


def test_a_teachers_map_is_resized_bilinearly_without_align_corners():
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    student = torch.zeros(1, 1, 2, 2)
    assert align(ramp, student)[0, 0].tolist() == [[0.5, 2.5], [0.5, 2.5]]
    assert torch.equal(align(ramp, ramp), ramp)


def test_a_connector_starts_with_the_variance_of_its_output_channels():
    torch.manual_seed(0)
    weight = next(module for module in Connector(512, 64).modules() if isinstance(module, torch.nn.Conv2d)).weight
    assert weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)


def test_the_whole_tensor_norm_is_exact_for_large_maps_in_fp32():
    from hf_segkd.losses.attnfd import normalized_distance

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 64, 129, 129)
    expected = 2 - 2 * F.cosine_similarity(student.double().flatten(), teacher.double().flatten(), dim=0)
    assert normalized_distance(student, teacher).item() == pytest.approx(expected.item(), rel=1e-6)


def test_one_overflow_does_not_spoil_the_statistics():
    loss = create_loss("fakd_cwd", STUDENT, TEACHER)
    student, teacher, labels = ({k: v.float() for k, v in x.items()} if isinstance(x, dict) else x for x in batch())
    loss.set_progress(1.0)
    spoilt = {**student, "decoder": student["decoder"].clone()}
    spoilt["decoder"][0, 0, 3, 3] = float("inf")
    loss(spoilt, teacher, labels)
    assert loss(student, teacher, labels)["fakd_cwd"].isfinite()


@pytest.mark.parametrize(
    "options",
    [{"connector_epochs": -1}, {"connector_epochs": 0.5}, {"weight": float("nan")}, {"teacher_attention_weight": 2.0}],
    ids=str,
)
def test_values_of_attnfd_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[0]):
        create_loss("attnfd", STUDENT, TEACHER, **options)
