import copy

import numpy as np
import pytest
import torch
from loss_cases import STUDENT, TEACHER, draw, make_features, make_labels, value_and_gradient
from safetensors.torch import load, save
from tiny_runs import same
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.adversary import Adversary, adversarial_loss, gradient_penalty


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


def test_a_failure_while_learning_leaves_the_discriminator_without_gradients(make_adversary, monkeypatch):
    adversary = make_adversary()
    adversary(*logit_maps())
    monkeypatch.setattr(adversary, "_loss", lambda *args: torch.zeros(()).view(2))
    with pytest.raises(RuntimeError):
        adversary.learn(np.random.default_rng(0))
    assert not any(parameter.requires_grad for parameter in adversary.parameters())


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
