import torch

from hf_segkd.losses.gram import gram_matrix, unit_rows


def test_value_and_gradient_are_those_of_the_product():
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    weight = torch.arange(9.0).reshape(3, 3)  # not symmetric
    torch.testing.assert_close(gram_matrix(x), x @ x.mT)
    (gradient,) = torch.autograd.grad((gram_matrix(x) * weight).sum(), x)
    (expected,) = torch.autograd.grad((x @ x.mT * weight).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_one_map_is_kept_for_the_backward_pass():
    x = torch.randn(2, 3, 5, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        gram_matrix(x)
    assert [tensor.shape for tensor in saved] == [(2, 3, 5)]


def test_rows_of_small_maps_are_scaled_to_length_1_and_zeros_stay_zeros_without_large_gradients():
    x = torch.randn(2, 4, 200, generator=torch.Generator().manual_seed(0)) * 1e-4
    x[:, 0] = 0.0
    rows = unit_rows(gram_matrix(x.requires_grad_()))
    torch.testing.assert_close(rows.norm(dim=2), torch.tensor([0.0, 1.0, 1.0, 1.0]).expand(2, 4))
    (gradient,) = torch.autograd.grad(rows.sum(), x)
    assert gradient[:, 0].abs().max() < 10 * gradient[:, 1:].abs().max()
