import copy

import pytest
import torch
from loss_cases import draw, reference, value_and_gradient
from torch import nn
from torch.nn import functional as F

from hf_segkd.losses.discriminator import Discriminator, SelfAttention, SpectralNormConv2d


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
