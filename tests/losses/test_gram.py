import torch

from hf_segkd.losses.gram import gram_matrix


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
