import pytest
import torch
from loss_cases import STUDENT, TEACHER, make_features, make_labels, reference

from hf_segkd.losses import create_loss
from hf_segkd.losses.cwd import channel_wise_divergence
from hf_segkd.types import NetworkSpec


def official_case():
    """TorchDistiller 78bac7c: torch seed 0, student and teacher randn(2, 19, 12, 20) * 3, in float64."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(2, 19, 12, 20, generator=generator) * 3.0).double() for _ in range(2)]


def test_the_value_is_the_formula_written_as_a_loop_over_channels():
    student, teacher = (x[:, :3, :2, :5] for x in official_case())
    expected = 0.0
    for image in range(2):
        for channel in range(3):
            p = torch.softmax(teacher[image, channel].flatten() / 2.0, 0)
            q = torch.softmax(student[image, channel].flatten() / 2.0, 0)
            expected += (p * (p / q).log()).sum() * 4.0 / 6.0
    torch.testing.assert_close(channel_wise_divergence(student, teacher, 2.0), expected, rtol=1e-12, atol=0.0)


def test_value_and_gradient_are_those_of_the_authors_code():
    student, teacher = official_case()
    student.requires_grad_()
    value = channel_wise_divergence(student, teacher, 4.0)
    value.backward()
    assert value.item() == pytest.approx(9.039044225211603, rel=1e-12)
    assert student.grad.norm().item() == pytest.approx(0.05176748718759312, rel=1e-9)
    first = torch.tensor([-0.00035558914532884955, -0.0003990685800090432, 4.0193765016738325e-05])
    torch.testing.assert_close(student.grad.flatten()[:3].float(), first, rtol=2e-5, atol=1e-10)


def test_the_reference_file_agrees():
    cases = reference("methods.json")["cases"]
    case = next(case for case in cases if case["id"] == "torchdistiller_logits_T4")
    assert channel_wise_divergence(*official_case(), 4.0).item() == pytest.approx(
        case["outputs_f64"]["loss"], rel=1e-12
    )


def test_equal_maps_and_an_offset_per_channel_cost_nothing():
    student, _ = official_case()
    offset = torch.arange(19.0).reshape(1, 19, 1, 1)
    assert channel_wise_divergence(student, student) == 0.0
    assert abs(channel_wise_divergence(student, student + offset)) < 1e-12


@pytest.mark.parametrize(("preset", "temperature", "weight"), [("paper", 4, 3), ("mm_city", 1, 5), ("mm_ade", 1, 10)])
@pytest.mark.parametrize("name", ["cwd", "fakd_cwd"])
def test_presets_set_temperature_and_weight(name, preset, temperature, weight):
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    value = create_loss(name, STUDENT, TEACHER, preset=preset)(*arguments)[name]
    plain = channel_wise_divergence(arguments[0]["logits"], arguments[1]["logits"], temperature)
    torch.testing.assert_close(value, weight * plain)


def test_explicit_arguments_win_over_the_preset():
    loss = create_loss("cwd", STUDENT, TEACHER, preset="mm_ade", temperature=2.0, weight=0.0)
    assert loss.temperature == 2.0
    assert loss.weights == {"cwd": 0.0}


def test_a_projector_exists_only_where_the_widths_differ():
    assert not list(create_loss("cwd", STUDENT, TEACHER).parameters())
    assert not list(create_loss("cwd", STUDENT, STUDENT, tap="encoder").parameters())
    (weight,) = create_loss("cwd", STUDENT, TEACHER, tap="encoder").parameters()
    assert weight.shape == (16, 8, 1, 1)


def test_features_of_networks_with_other_classes_can_be_compared():
    other = NetworkSpec(channels={**TEACHER.channels, "logits": 7}, num_labels=7)
    loss = create_loss("cwd", STUDENT, other, tap="encoder", weight=50.0)
    assert loss(make_features(STUDENT, 1), make_features(other, 2), make_labels())["cwd"] > 0


def test_an_unknown_preset_and_a_negative_temperature_are_refused():
    with pytest.raises(ValueError, match="preset is 'ade'; it must be one of 'paper', 'mm_city', 'mm_ade'"):
        create_loss("cwd", STUDENT, TEACHER, preset="ade")
    with pytest.raises(ValueError, match="temperature is -1"):
        create_loss("cwd", STUDENT, TEACHER, temperature=-1)


def test_mmsegmentation_distillers_cross_entropy_has_the_same_gradient_and_the_teachers_entropy_on_top():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 6, 7, dtype=torch.float64), torch.randn(2, 5, 6, 7, dtype=torch.float64)
    student.requires_grad_()
    plain = channel_wise_divergence(student, teacher, 2.0)
    entropy_kept = channel_wise_divergence(student, teacher, 2.0, subtract_entropy=False)
    p = (teacher.flatten(2) / 2.0).softmax(-1)
    torch.testing.assert_close(entropy_kept - plain, -4.0 * (p * p.log()).sum() / 10)
    gradients = [torch.autograd.grad(value, student)[0] for value in (plain, entropy_kept)]
    torch.testing.assert_close(*gradients)
