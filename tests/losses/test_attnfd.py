import math

import pytest
import torch
from hashed_numbers import hashed
from loss_cases import NUM_LABELS, STUDENT, TEACHER, make_features, make_labels, reference
from torch import nn
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.attention import CBAM, ParameterFreeAttention, _MeanAndMaximum
from hf_segkd.losses.attnfd import normalized_distance
from hf_segkd.losses.base import TrainingRequest

# The authors' code (f090bbe) in float64 on inputs of `hashed_numbers`: distances over the batch size of 2.
PLACES = [((2, 6, 3, 4), 20, 3.0, 30), ((2, 4, 3, 4), 21, 4.0, 31), ((2, 4, 5, 6), 22, 5.0, 32)]
DISTANCES = [0.950073190659, 1.0377743009, 1.11512373053]
TOTAL = 6.20594244417  # 2 * their sum
GRADIENTS = [
    [0.0275413842651, 0.0386659812583, -0.0198110364868],
    [0.0145878949437, 0.00682305730438, 0.0088415646109],
]
CBAM_CHANNEL_GATE = [0.383759351114, 0.595303943356, 0.838347714602, -0.343081199159]
CBAM_EVAL = [0.227601427497, 0.298087228363, 0.48040616844, -0.20820310271]
CBAM_EVAL_GRADIENT = [-0.0724287933068, 0.0140574661803, 0.137071708458, -0.0958252961007]
CBAM_TRAIN = [0.166898102073, 0.0690573530232, 0.287142338293, -0.172383687525]
CBAM_GRADIENT_OF_W0 = [-0.432232492195, -0.130644233164]
CBAM_RUNNING = (-0.0715568165704, 0.971297783344)  # mean, variance after one training forward


def place(i):
    """Student and teacher map of place i, the former with gradient."""
    shape, k, scale, student_k = PLACES[i]
    return hashed(shape, student_k, 2.0).requires_grad_(), hashed(shape, k, scale)


def cbam_by_rule():
    """CBAM of 32 channels in float64, with the weights of attnfd.json's `weight_rule`."""
    module = CBAM(32).double()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                weight = layer.weight
                fan_in = weight.numel() // weight.shape[0]
                weight.copy_(hashed(weight.shape, weight.numel() % 89, math.sqrt(12 / fan_in)))
                if layer.bias is not None:
                    layer.bias.copy_(hashed(layer.bias.shape, layer.bias.numel() % 89 + 1, 0.2))
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.copy_(1 + hashed((1,), 3, 0.4))
                layer.bias.copy_(hashed((1,), 4, 0.4))
                layer.running_mean.copy_(hashed((1,), 5, 0.2))
                layer.running_var.copy_(1 + hashed((1,), 6, 0.5))
    return module


def assert_starts_with(tensor, numbers, tolerance=1e-9):
    expected = torch.tensor(numbers, dtype=torch.float64)
    torch.testing.assert_close(tensor.flatten()[: len(expected)], expected, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("norm", ["tensor", "sample", "channel", "map"])
@pytest.mark.parametrize("squared", [True, False])
def test_the_distance_is_the_formula_written_with_normalised_maps(norm, squared):
    student, teacher = place(0)
    groups = {
        "tensor": lambda x: x.reshape(1, -1),
        "sample": lambda x: x.reshape(2, -1),
        "channel": lambda x: x.permute(0, 2, 3, 1).reshape(-1, 6),
        "map": lambda x: x.reshape(12, -1),
    }[norm]
    difference = F.normalize(groups(student), dim=1) - F.normalize(groups(teacher), dim=1)
    distances = difference.norm(dim=1)
    expected = (distances**2 if squared else distances).mean()
    actual = normalized_distance(student, teacher, norm, squared)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(
        torch.autograd.grad(actual, student), torch.autograd.grad(expected, student), rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("i", [0, 1, 2])
def test_distances_over_the_batch_size_are_those_of_the_authors_code(i):
    student, teacher = place(i)
    assert normalized_distance(student, teacher).item() / 2 == pytest.approx(DISTANCES[i], abs=1e-9)


@pytest.mark.parametrize("i", [0, 1])
def test_gradients_are_those_of_the_authors_code(i):
    student, teacher = place(i)
    (2.0 * normalized_distance(student, teacher) / 2).backward()
    assert_starts_with(student.grad, GRADIENTS[i])


def test_the_official_preset_adds_the_places_as_the_authors_code():
    specs = [
        type(STUDENT)(channels={"backbone": 6, "encoder": 4, "decoder": 4}, num_labels=NUM_LABELS) for _ in range(2)
    ]
    loss = create_loss("attnfd", *specs, preset="official").double()
    for modules in (loss.student_attention, loss.connectors, loss.teacher_attention):
        for i in range(3):
            modules[i] = nn.Identity()
    student, teacher = (
        {tap: place(i)[side] for i, tap in enumerate(("backbone", "encoder", "decoder"))} for side in (0, 1)
    )
    value = loss(student, teacher, torch.zeros(2, 9, 9, dtype=torch.int64))["attnfd"]
    assert value.item() == pytest.approx(TOTAL, abs=1e-9)


def test_the_reference_file_of_distances_and_gradients_agrees():
    case = reference("attnfd.json")["loss_no_connector"]
    for i, expected in enumerate(case["per_layer_lambda1"]):
        student, teacher = place(i)
        value = normalized_distance(student, teacher) / 2
        assert value.item() == pytest.approx(expected, abs=1e-9)
        if i < len(case["grad_student"]):
            (case["attn_lambda"] * value).backward()
            assert_starts_with(student.grad, case["grad_student"][i])


def test_attention_in_eval_mode_is_that_of_the_authors_code():
    attention = cbam_by_rule().eval()
    x = hashed((2, 32, 3, 4), 11, 4.0).requires_grad_()
    assert_starts_with(attention.channel_gate(x), CBAM_CHANNEL_GATE)
    output = attention(x)
    assert_starts_with(output, CBAM_EVAL)
    (output * hashed((2, 32, 3, 4), 12, 1.0)).sum().backward()
    assert_starts_with(x.grad, CBAM_EVAL_GRADIENT)


def test_attention_in_training_mode_is_that_of_the_authors_code():
    attention = cbam_by_rule().train()
    x, weight_of_output = hashed((2, 32, 3, 4), 11, 4.0), hashed((2, 32, 3, 4), 12, 1.0)
    output = attention(x)
    assert_starts_with(output, CBAM_TRAIN)
    norm = attention[1].norm
    assert norm.running_mean.item() == pytest.approx(CBAM_RUNNING[0], abs=1e-9)
    assert norm.running_var.item() == pytest.approx(CBAM_RUNNING[1], abs=1e-9)
    # The reference gradient is that of one pass in training mode plus one in eval mode before it.
    (output * weight_of_output).sum().backward()
    norm.running_mean.copy_(hashed((1,), 5, 0.2))
    norm.running_var.copy_(1 + hashed((1,), 6, 0.5))
    (attention.eval()(x) * weight_of_output).sum().backward()
    assert_starts_with(attention.channel_gate.mlp[0].weight.grad, CBAM_GRADIENT_OF_W0)


def test_the_reference_file_of_the_attention_agrees():
    case = reference("attnfd.json")["cbam_student"]
    attention, x = cbam_by_rule(), hashed((2, 32, 3, 4), 11, 4.0)
    assert_starts_with(attention.eval()(x), case["eval_out"])
    assert_starts_with(attention.channel_gate(x), case["channel_gate_out"])
    assert_starts_with(attention.train()(x), case["train_out"])


def test_parameter_free_attention_is_its_formula():
    x = hashed((2, 3, 2, 2), 11, 4.0)
    gated = x.clone()
    for image in range(2):
        for channel in range(3):
            values = x[image, channel]
            gated[image, channel] = values * torch.sigmoid(values.mean() + values.max())
    expected = gated.clone()
    for image in range(2):
        for position in [(0, 0), (0, 1), (1, 0), (1, 1)]:
            values = gated[(image, slice(None), *position)]
            expected[(image, slice(None), *position)] = values * torch.sigmoid(values.max() + values.mean())
    torch.testing.assert_close(ParameterFreeAttention()(x), expected, rtol=1e-12, atol=0.0)


def test_the_distance_ignores_positive_scale_and_runs_from_0_to_4():
    student, teacher = place(0)
    torch.testing.assert_close(normalized_distance(3.0 * student, teacher), normalized_distance(student, teacher))
    assert normalized_distance(student, 2.0 * student).item() == pytest.approx(0.0, abs=1e-12)
    assert normalized_distance(student, -student).item() == pytest.approx(4.0, abs=1e-12)


@pytest.mark.parametrize("norm", ["tensor", "sample", "channel", "map"])
@pytest.mark.parametrize("squared", [True, False])
def test_a_map_of_zeros_has_no_direction_and_no_gradient(norm, squared):
    teacher = place(0)[1]
    student = torch.zeros_like(teacher, requires_grad=True)
    value = normalized_distance(student, teacher, norm, squared)
    value.backward()
    assert value.item() == pytest.approx(1.0)
    assert student.grad.abs().max() == 0.0


@pytest.mark.parametrize("angle", [1e-5, 1e-4, 1e-2])
def test_the_unsquared_distance_of_close_directions_is_their_chord(angle):
    student = torch.tensor([[1.0, 0.0]], dtype=torch.float64)[:, :, None, None]
    teacher = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)[:, :, None, None]
    value = normalized_distance(student, teacher, "channel", squared=False)
    assert value.item() == pytest.approx(2 * math.sin(angle / 2), rel=1e-3)


def test_the_whole_tensor_norm_is_exact_for_large_maps_in_fp32():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 64, 129, 129)
    expected = 2 - 2 * F.cosine_similarity(student.double().flatten(), teacher.double().flatten(), dim=0)
    assert normalized_distance(student, teacher).item() == pytest.approx(expected.item(), rel=1e-6)


def test_presets_differ_as_documented_and_explicit_arguments_win():
    official = create_loss("attnfd", STUDENT, TEACHER, preset="official")
    assert official.request == TrainingRequest(connector_epochs=1, divide_by_batch=True)
    assert not any(p.requires_grad for p in official.teacher_attention.parameters())
    frozen = {name for name, p in official.student_attention.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in official.student_attention.named_parameters() if ".mlp." in name}
    assert set(official.connector_parameters()) == set(official.connectors.parameters())
    assert set(official.finished_parameters()) == set(official.connectors.parameters())
    paper = create_loss("attnfd", STUDENT, TEACHER, preset="paper", norm="sample", weight=10)
    assert paper.student_taps == ("low_level_pre", "encoder_pre", "decoder_pre")
    assert paper.weights == {"attnfd": 10, "attnfd_teacher_attention": 1.0}
    assert (paper.norm, paper.squared, paper.request) == ("sample", False, TrainingRequest())
    default = create_loss("attnfd", STUDENT, TEACHER)
    assert all(p.requires_grad for p in default.parameters())
    assert not list(default.teacher_attention.parameters())
    assert default.weights == {"attnfd": 2.0}


def test_trained_teacher_attention_learns_from_the_labels_alone():
    loss = create_loss("attnfd", STUDENT, TEACHER, teacher_attention="trained")
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    loss(*arguments)["attnfd"].backward()
    assert all(p.grad is None for p in loss.teacher_attention.parameters())
    assert all(p.grad is None for p in loss.teacher_classifiers.parameters())
    loss.zero_grad()
    loss(*arguments)["attnfd_teacher_attention"].backward()
    assert all(p.grad.abs().sum() > 0 for p in loss.teacher_classifiers.parameters())
    assert all(p.grad is not None for p in loss.teacher_attention.parameters())
    assert all(p.grad is None for p in loss.connectors.parameters())


def test_teacher_attention_term_is_the_cross_entropy_of_each_place():
    loss = create_loss("attnfd", STUDENT, TEACHER, teacher_attention="trained", places=("decoder",))
    student, teacher, labels = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    value = loss(student, teacher, labels)["attnfd_teacher_attention"]
    logits = loss.teacher_classifiers[0](loss.teacher_attention[0](teacher["decoder"]))
    small = F.interpolate(labels[:, None].float(), size=(9, 13), mode="nearest")[:, 0].long()
    torch.testing.assert_close(value, F.cross_entropy(logits, small, ignore_index=255))


def test_the_weight_multiplies_the_sum_over_the_places():
    arguments = make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()
    torch.manual_seed(0)
    loss = create_loss("attnfd", STUDENT, TEACHER, weight=3.0)
    expected = sum(
        normalized_distance(
            loss.connectors[i](loss.student_attention[i](arguments[0][tap])),
            ParameterFreeAttention()(arguments[1][tap]),
        )
        for i, tap in enumerate(("backbone", "encoder", "decoder"))
    )
    torch.testing.assert_close(loss(*arguments)["attnfd"], 3.0 * expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "code"}, "preset is 'code'; it must be one of 'default', 'official', 'paper'"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"teacher_attention": "frozen"}, "teacher_attention is 'frozen'"),
        ({"places": ()}, "places is empty"),
        ({"connector_epochs": -1}, "connector_epochs must be a whole number from 0, got -1"),
        ({"connector_epochs": 0.5}, "connector_epochs must be a whole number from 0, got 0.5"),
        ({"weight": math.nan}, "weight of attnfd is nan"),
        ({"places": ("stem",)}, r"reads the student's \['stem'\], but that network offers"),
    ],
)
def test_wrong_values_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_loss("attnfd", STUDENT, TEACHER, **kwargs)


@pytest.mark.parametrize("dims", [(1,), (2, 3)])
def test_pooling_has_the_gradients_of_mean_and_amax_also_where_several_are_the_largest(dims):
    x = hashed((2, 6, 3, 4), 40, 4.0).round().clamp_min(0.0).requires_grad_()  # few values, many zeros
    weights = [hashed(x.mean(dims, keepdim=True).shape, k, 1.0) for k in (41, 42)]
    actual, expected = _MeanAndMaximum.apply(x, dims), (x.mean(dims, keepdim=True), x.amax(dims, keepdim=True))
    gradients = [torch.autograd.grad(pooled, x, weights)[0] for pooled in (actual, expected)]
    assert [torch.equal(*pair) for pair in zip(actual, expected, strict=True)] == [True, True]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("norm", ["tensor", "sample", "channel", "map"])
def test_the_distance_has_a_gradient_of_the_teacher_too_as_the_formula_has(norm):
    student, teacher = (x.detach().requires_grad_() for x in place(0))
    mirrored = normalized_distance(teacher, student, norm)
    (expected,) = torch.autograd.grad(mirrored, teacher)
    (actual,) = torch.autograd.grad(normalized_distance(student, teacher, norm), teacher)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)
