import pytest
import torch

from hf_segkd.losses.adapters import Connector, align, class_labels, lengths, resize_labels


def test_a_teachers_map_is_resized_bilinearly_without_align_corners():
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    student = torch.zeros(1, 1, 2, 2)
    assert align(ramp, student)[0, 0].tolist() == [[0.5, 2.5], [0.5, 2.5]]  # with align_corners: 0 and 3
    assert align(ramp, ramp) is ramp


def test_nearest_takes_the_top_left_pixel_of_a_cell_and_nearest_exact_its_centre():
    labels = torch.arange(36).reshape(1, 6, 6)
    assert resize_labels(labels, (2, 2)).tolist() == [[[0, 3], [18, 21]]]
    assert resize_labels(labels, (2, 2), "nearest-exact").tolist() == [[[7, 10], [25, 28]]]


def test_the_ignore_index_becomes_minus_one_even_if_it_is_the_number_of_a_class():
    labels = torch.tensor([[[0, 1, 2, 255]]])
    assert class_labels(labels, (1, 4), ignore_index=255).tolist() == [[[0, 1, 2, -1]]]
    assert class_labels(labels, (1, 4), ignore_index=1).tolist() == [[[0, -1, 2, 255]]]


def test_a_connector_starts_with_the_variance_of_its_output_channels():
    torch.manual_seed(0)
    for kernel_size in (1, 3):
        convolution, norm = Connector(512, 64, kernel_size)
        assert convolution.weight.std().item() == pytest.approx((2 / (kernel_size**2 * 64)) ** 0.5, rel=0.02)
        assert convolution.bias is None
        assert (norm.weight == 1.0).all()
        assert (norm.bias == 0.0).all()


def test_vectors_of_no_length_are_infinitely_long():
    assert lengths(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-7, 0.0]])).tolist() == [5.0, torch.inf, torch.inf]
