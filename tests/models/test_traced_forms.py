"""The forms that networks take in graphs give the bits of those they run and train with."""

import pytest
import torch
from torch import nn

from hf_segkd.models import modeling_layers
from hf_segkd.models.modeling_isanet import from_groups, to_groups
from hf_segkd.models.modeling_layers import spread
from hf_segkd.models.modeling_pspnet import average_pool, averaging_matrix


@pytest.fixture
def traced(monkeypatch):
    """Calls a function as it is run, and as it is traced."""

    def both(function, *arguments):
        run = function(*arguments)
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_exporting", lambda: True)
            return run, function(*arguments)

    return both


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (1, 33, 33, 33), (1, 7, 17, 129)])
def test_one_pixel_is_spread_the_same_with_gradients_as_they_were(traced, dtype, shape):
    pixel = torch.randn(*shape[:2], 1, 1, dtype=dtype, requires_grad=True)
    upstream = torch.randn(shape, dtype=dtype)
    run, graph = traced(spread, pixel, shape[2:])
    expanded = pixel.expand_as(upstream)
    assert torch.equal(run, expanded)
    assert torch.equal(graph, expanded)
    (gradient,) = torch.autograd.grad(run, pixel, upstream)
    assert torch.equal(gradient, torch.autograd.grad(expanded, pixel, upstream)[0])
    torch.testing.assert_close(torch.autograd.grad(graph, pixel, upstream)[0], gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("length", "bins"), [(5, 1), (5, 6), (60, 6), (33, 3), (129, 2)])
def test_averages_have_the_same_weights(traced, dtype, length, bins):
    run, graph = traced(averaging_matrix, length, bins, torch.zeros(1, dtype=dtype))
    assert run.dtype == graph.dtype == dtype
    assert torch.equal(run, graph)


@pytest.mark.parametrize("bins", [1, 3])
def test_averages_are_the_same_but_for_the_order_of_sums(traced, bins):
    run, graph = traced(average_pool, torch.randn(2, 3, 9, 13, dtype=torch.float64), bins)
    torch.testing.assert_close(graph, run, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("local", [True, False])
def test_groups_hold_the_same_pixels(traced, local):
    x = torch.randn(2, 3, 8, 15)
    run, graph = traced(to_groups, x, (4, 5), local)
    assert torch.equal(run, graph)
    assert all(torch.equal(back, x) for back in traced(from_groups, run, (8, 15), (4, 5), local))


def test_graphs_are_known_by_what_makes_them():
    seen = []

    class Network(nn.Module):
        def forward(self, x):
            seen.append(modeling_layers.is_traced())
            return spread(x, (3, 4))

    network, pixel = Network(), torch.randn(1, 2, 1, 1)
    network(pixel)
    program = torch.export.export(network, (pixel,))
    torch.jit.trace(network, pixel)
    assert seen[:2] == [False, True]
    assert seen[2]
    names = {node.target.__name__ for node in program.graph.nodes if node.op == "call_function"}
    assert "upsample_bilinear2d.vec" in names
    assert not any(name.startswith("expand") for name in names)
