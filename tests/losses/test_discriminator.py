import copy

import numpy as np
import pytest
import torch
from loss_cases import STUDENT, TEACHER, draw, make_features, make_labels, reference, value_and_gradient
from safetensors.torch import load, save
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.adversary import Adversary, adversarial_loss, gradient_penalty
from hf_segkd.losses.discriminator import Discriminator, SelfAttention, SpectralNormConv2d

# --- the discriminator ---


def official_discriminator():
    """Weights of the golden case: seed 15, randn * 0.05 for each name of the official network, in sorted order."""
    shapes = {}
    for layer, width, inputs in (("l1.0", 64, 19), ("l2.0", 128, 64), ("l3.0", 256, 128), ("l4.0", 512, 256)):
        shapes[f"{layer}.bias"] = (width,)
        shapes[f"{layer}.weight"] = (width, inputs, 4, 4)
        shapes[f"{layer}.weight_u"] = (width,)
        shapes[f"{layer}.weight_v"] = (inputs * 16,)
    for layer, width in (("attn1", 256), ("attn2", 512)):
        shapes[f"{layer}.gamma"] = (1,)
        for name, outputs in (("key", width // 8), ("query", width // 8), ("value", width)):
            shapes[f"{layer}.{name}.bias"] = (outputs,)
            shapes[f"{layer}.{name}.weight"] = (outputs, width, 1, 1)
    shapes |= {"last.0.bias": (1,), "last.0.weight": (1, 512, 4, 4), "pre.bias": (19,), "pre.weight": (19,)}
    ours = {"pre": 0, "l1.0": 1, "l2.0": 3, "l3.0": 5, "attn1": 7, "l4.0": 8, "attn2": 10, "last.0": 11}
    discriminator = Discriminator(19)
    state = discriminator.state_dict()
    generator = torch.Generator().manual_seed(15)
    for name, shape in sorted(shapes.items()):
        value = torch.randn(shape, generator=generator) * 0.05
        if not name.endswith("weight_v"):  # recomputed before it is used
            module = next(module for module in ours if name.startswith(f"{module}."))
            ending = name.removeprefix(f"{module}.").replace("weight_u", "u")
            assert f"{ours[module]}.{ending}" in state
            state[f"{ours[module]}.{ending}"] = value
    discriminator.load_state_dict(state)
    return discriminator


def test_score_and_gradient_of_the_discriminator_are_those_of_the_authors_code():
    discriminator = official_discriminator().eval()
    (logits,) = draw(16, (2, 19, 65, 65), scale=3.0)
    assert discriminator(logits).shape == (2, 1, 1, 1)
    value, gradient = value_and_gradient(lambda s: discriminator(s).mean(), logits)
    assert value.item() == pytest.approx(-0.22621172666549683, rel=2e-5)
    assert gradient.norm().item() == pytest.approx(0.018219023329494672, rel=2e-5)
    first = torch.tensor([1.6458488971693441e-06, 1.1108872058684938e-05, 5.855357812833972e-06])
    torch.testing.assert_close(gradient.flatten()[:3], first, rtol=1e-4, atol=1e-10)


def test_the_reference_file_agrees():
    cases = {case["id"]: case for case in reference("methods.json")["cases"] if case["method"] == "SKDS"}
    case = cases["discriminator_forward_65"]
    (logits,) = draw(16, (2, 19, 65, 65), scale=3.0)
    with torch.no_grad():
        score = official_discriminator().eval()(logits).mean().item()
    assert score == pytest.approx(case["outputs"]["loss"], rel=2e-5)
    assert sum(p.numel() for p in Discriminator(19).parameters()) == case["n_params"] == 3_191_721


def test_the_largest_singular_value_tends_to_one():
    torch.manual_seed(0)
    convolution = SpectralNormConv2d(3, 8, 4, stride=2, padding=1)
    x = torch.randn(1, 3, 8, 8)
    for _ in range(200):
        y = convolution(x)
    weight = convolution.weight / torch.linalg.matrix_norm(convolution.weight.flatten(1), 2)
    torch.testing.assert_close(y, F.conv2d(x, weight, convolution.bias, stride=2, padding=1))


def test_the_gradient_passes_through_the_singular_value():
    torch.manual_seed(0)
    convolution = SpectralNormConv2d(3, 8, 4, stride=2, padding=1).double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    for _ in range(300):  # u and v are singular vectors then, and the derivative of theirs does not matter
        y = convolution(x)
    y.square().sum().backward()
    weight = convolution.weight.detach().clone().requires_grad_()
    normalised = weight / torch.linalg.matrix_norm(weight.flatten(1), 2)
    F.conv2d(x, normalised, convolution.bias, stride=2, padding=1).square().sum().backward()
    torch.testing.assert_close(convolution.weight.grad, weight.grad, rtol=1e-6, atol=1e-9)


def test_evaluation_leaves_the_discriminator_as_it_is_and_training_goes_on_iterating():
    discriminator = Discriminator(3)
    (logits,) = draw(0, (2, 3, 64, 64))
    before = copy.deepcopy(discriminator.state_dict())
    discriminator.eval()(logits)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    discriminator.train()(logits)
    changed = {name for name, value in discriminator.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert changed == statistics | {f"{layer}.u" for layer in (1, 3, 5, 8)}


def test_self_attention_is_the_formula_written_as_loops():
    torch.manual_seed(0)
    layer = SelfAttention(8).double()
    x = torch.randn(1, 8, 2, 3, dtype=torch.float64)
    assert torch.equal(layer(x), x)  # gamma starts at 0
    nn.init.constant_(layer.gamma, 0.7)
    pixels = x[0].flatten(1).T
    q, k, v = ((pixels @ m.weight[:, :, 0, 0].T + m.bias) for m in (layer.query, layer.key, layer.value))
    expected = x.clone()
    for i in range(6):
        share = torch.softmax(torch.stack([q[i] @ k[j] for j in range(6)]), 0)
        expected[0, :, i // 3, i % 3] += 0.7 * sum(share[j] * v[j] for j in range(6))
    torch.testing.assert_close(layer(x), expected)


def test_an_affine_change_of_a_class_in_the_whole_batch_does_not_change_the_score():
    discriminator = Discriminator(5)
    (logits,) = draw(0, (2, 5, 64, 64))
    factor, offset = torch.linspace(0.5, 3, 5).reshape(1, 5, 1, 1), torch.linspace(-9, 9, 5).reshape(1, 5, 1, 1)
    torch.testing.assert_close(
        copy.deepcopy(discriminator)(logits), discriminator(factor * logits + offset), rtol=1e-3, atol=1e-4
    )


def test_short_sides_are_enlarged_to_64_and_others_left_alone():
    discriminator = Discriminator(3).eval()
    small, large = draw(0, (2, 3, 24, 80), (2, 3, 64, 128))
    enlarged = F.interpolate(small, size=(64, 80), mode="bilinear", align_corners=False)
    assert torch.equal(discriminator(small), discriminator(enlarged))
    assert discriminator(large).shape == (2, 1, 1, 5)
    assert torch.equal(discriminator(large), nn.Sequential.forward(discriminator, large))


# --- objectives ---


def test_both_objectives_are_their_formulas_written_as_loops():
    student, teacher = draw(13, (4, 1, 1, 1), (4, 1, 1, 1))
    s, t = student.flatten().tolist(), teacher.flatten().tolist()
    wgan = sum(s) / 4 - sum(t) / 4
    hinge = sum(max(0.0, 1 + x) for x in s) / 4 + sum(max(0.0, 1 - x) for x in t) / 4
    assert adversarial_loss(student, teacher).item() == pytest.approx(wgan, rel=1e-6)
    assert adversarial_loss(student, teacher, "hinge").item() == pytest.approx(hinge, rel=1e-6)


def test_the_students_term_is_that_of_the_authors_code():
    adversary = Adversary(1)
    adversary.discriminator = nn.Identity()
    student, teacher = draw(13, (4, 1, 1, 1), (4, 1, 1, 1))
    value, gradient = value_and_gradient(lambda s: adversary(s, teacher), student)
    assert value.item() == pytest.approx(-0.3796106278896332, rel=2e-5)
    assert gradient.flatten().tolist() == [-0.25] * 4


def test_the_gradient_penalty_is_the_closed_form_for_a_quadratic_score_and_its_parameters():
    student, teacher = (x.double() for x in draw(0, (3, 2, 4, 5), (3, 2, 4, 5)))
    share = torch.tensor([0.0, 0.3, 1.0]).double().reshape(3, 1, 1, 1)
    factor = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    value = gradient_penalty(lambda x: factor * x.square() / 2, student, teacher, share)
    value.backward()
    norms = [(a.item() * t + (1 - a.item()) * s).norm() for a, s, t in zip(share, student, teacher, strict=True)]
    torch.testing.assert_close(value.detach(), sum((0.2 * n - 1) ** 2 for n in norms) / 3)
    torch.testing.assert_close(factor.grad, sum(2 * n * (0.2 * n - 1) for n in norms) / 3)


def test_the_gradient_penalty_is_finite_where_the_score_is_flat():
    (logits,) = draw(0, (2, 2, 4, 5))
    factor = torch.zeros((), requires_grad=True)
    value = gradient_penalty(lambda x: factor * x, logits, logits, torch.zeros(2, 1, 1, 1))
    value.backward()
    assert value == 1.0
    assert factor.grad == 0.0


# --- the adversary, with a small discriminator ---


@pytest.fixture
def make_adversary(_small_discriminator):
    def make(seed=0, **kwargs):
        torch.manual_seed(seed)
        return Adversary(3, **kwargs)

    return make


def logit_maps(seed=0):
    """Logits of a student, and those of a teacher with another distribution, (2, 3, 12, 16)."""
    student, teacher = draw(seed, (2, 3, 12, 16), (2, 3, 12, 16))
    return student, 3 * F.avg_pool2d(teacher, 3, 1, 1).exp()


def learn(adversary, seed):
    adversary(*logit_maps(seed))
    adversary.learn(np.random.default_rng(seed))


def train(adversary, steps, start=0, total=8):
    for step in range(start, start + steps):
        learn(adversary, step)
        adversary.update(step / total)
    return {name: value.clone() for name, value in adversary.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("objective", "optimizer"), [("wgan-gp", "sgd"), ("hinge", "adam")])
def test_an_update_is_a_step_of_the_published_optimizer_on_the_mean_gradient(objective, optimizer, make_adversary):
    adversary = make_adversary(objective=objective, optimizer=optimizer).double()
    expected = copy.deepcopy(adversary.discriminator).requires_grad_()
    if optimizer == "sgd":
        steps, power = torch.optim.SGD(expected.parameters(), lr=4e-4, momentum=0.9, weight_decay=5e-4), 0.9
    else:
        steps, power = torch.optim.Adam(expected.parameters(), lr=4e-4, betas=(0.9, 0.99)), 0.0
    for progress in (0.0, 0.25):
        start = {name: value.clone() for name, value in adversary.discriminator.named_parameters()}
        steps.param_groups[0]["lr"] = 4e-4 * (1 - progress) ** power
        steps.zero_grad()
        for seed in (0, 1):  # two batches accumulated
            student, teacher = (x.double() for x in logit_maps(seed))
            adversary(student, teacher)
            logged = adversary.learn(np.random.default_rng(seed))
            loss = written_out_loss(expected, student, teacher, seed, objective)
            torch.testing.assert_close(logged, loss.detach())
            (0.1 * loss / 2).backward()
        assert same(dict(adversary.discriminator.named_parameters()), start)
        steps.step()
        adversary.update(progress)
    for name, value in expected.named_parameters():
        if "bias" not in name or optimizer == "sgd":  # Adam makes steps of the rounding of a gradient that is 0
            actual = adversary.discriminator.get_parameter(name)
            torch.testing.assert_close(actual, value, rtol=1e-10, atol=1e-12, check_stride=False)
    moved = ("0.weight", "1.weight", "3.gamma", "4.weight")
    assert not any(torch.equal(adversary.discriminator.get_parameter(name), start[name]) for name in moved)


def written_out_loss(discriminator, student, teacher, seed, objective):
    with torch.no_grad():
        discriminator(student)  # the student's term
    t, s = discriminator(teacher), discriminator(student)
    if objective == "hinge":
        return (1 + s).relu().mean() + (1 - t).relu().mean()
    share = torch.from_numpy(np.random.default_rng(seed).random((2, 1, 1, 1)))
    mixed = (share * teacher + (1 - share) * student).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
    return s.mean() - t.mean() + 10 * ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


@pytest.mark.parametrize("objective", ["wgan-gp", "hinge"])
def test_the_discriminator_learns_to_tell_teacher_from_student(objective, make_adversary):
    adversary = make_adversary(objective=objective, optimizer="adam", learning_rate=0.01)
    gaps = []
    for step in range(15):
        student, teacher = logit_maps(step % 3)
        with torch.no_grad():
            gaps.append((adversary.discriminator(teacher) - adversary.discriminator(student)).mean().item())
        learn(adversary, step % 3)
        adversary.update(0.0)
    assert sum(gaps[-3:]) > sum(gaps[:3]) + 0.1


@pytest.mark.usefixtures("_small_discriminator")
def test_the_student_gets_no_gradient_from_the_discriminators_learning_nor_the_reverse():
    loss = create_loss("skds", STUDENT, TEACHER)
    student = make_features(STUDENT, 1)
    loss(student, make_features(TEACHER, 2), make_labels())["skds_adversarial"].backward()
    gradient = student["logits"].grad.clone()
    assert gradient.abs().sum() > 0
    assert not any(logits.requires_grad for logits in loss.adversary._logits)  # nor is the student's graph held
    loss.adversary.learn(np.random.default_rng(0))
    assert torch.equal(student["logits"].grad, gradient)
    # Neither zero_grad nor clipping nor DDP would find anything, before the update and after it.
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in loss.parameters())
    loss.adversary.update(0.0)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_state_that_was_saved_goes_on_bit_for_bit(optimizer, make_adversary):
    straight = train(make_adversary(optimizer=optimizer), 4)
    saved = save(train(make_adversary(optimizer=optimizer), 2))
    resumed = make_adversary(seed=9, optimizer=optimizer)
    resumed.load_state_dict(load(saved))
    assert same(train(resumed, 2, start=2), straight)


def test_loading_a_state_that_was_never_trained_forgets_the_momentum(make_adversary):
    fresh = make_adversary().state_dict()
    expected = train(make_adversary(), 1)
    adversary = make_adversary()
    train(adversary, 3)
    adversary.load_state_dict(make_adversary().state_dict())
    assert same(adversary.state_dict(), fresh)
    assert same(train(adversary, 1), expected)


def test_two_adversaries_do_not_share_the_state_that_one_was_loaded_from(make_adversary):
    first, second = make_adversary(), make_adversary()
    before = train(first, 1)
    second.load_state_dict(first.state_dict())
    train(second, 1, start=1)
    assert same(first.state_dict(), before)


def test_a_gradient_that_overflows_is_told_and_does_not_reach_the_discriminator(make_adversary):
    adversary = make_adversary()
    before = {name: value.clone() for name, value in adversary.named_parameters()}
    student, teacher = logit_maps()
    student[0, 0, 3, 3] = float("inf")
    adversary(student, teacher)
    adversary.learn(np.random.default_rng(0))
    with pytest.raises(FloatingPointError, match="gradient of the discriminator is not finite"):
        adversary.update(0.0)
    assert same(dict(adversary.named_parameters()), before)


def test_learning_draws_no_global_random_number_and_autocast_changes_nothing(make_adversary):
    expected = train(make_adversary(), 1)
    adversary = make_adversary()
    state = torch.get_rng_state()
    adversary(*logit_maps(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adversary.learn(np.random.default_rng(0))
    adversary.update(0.0)
    assert same(adversary.state_dict(), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_gradient_of_two_processes_is_the_mean_of_theirs(make_adversary, monkeypatch):
    together = make_adversary()
    for rank in (0, 1):
        learn(together, rank)
    together.update(0.0)

    ranks = [make_adversary(), make_adversary()]
    learn(ranks[0], 0)
    # u goes on from where the first batch left it above.
    ranks[1].discriminator.load_state_dict(ranks[0].discriminator.state_dict())
    learn(ranks[1], 1)
    total = sum(adversary._gradient for adversary in ranks)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.copy_(total))
    for adversary in ranks:
        adversary.update(0.0)
        for actual, expected in zip(adversary.parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
