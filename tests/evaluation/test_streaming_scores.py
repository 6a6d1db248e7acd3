import logging

import pytest
import torch
from torch import nn

from hf_segkd.evaluation import streaming_scores
from hf_segkd.evaluation.streaming_scores import loss_and_counts


@pytest.fixture
def case():
    """A network that looks 4 pixels around, images, and labels of another size of which some are ignored."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 12, 5, padding=2)).requires_grad_(
        False
    )
    labels = torch.randint(12, (2, 130, 101))
    labels[torch.rand(labels.shape) < 0.2] = 255
    return network, torch.randn(2, 3, 90, 131), labels


def test_what_is_too_large_to_be_resized_at_once_has_the_same_counts_and_loss(case, monkeypatch):
    loss, counts = loss_and_counts(*case, 12, 255)
    monkeypatch.setattr(streaming_scores, "LOGITS_AT_ONCE", 1)
    loss_of_parts, counts_of_parts = loss_and_counts(*case, 12, 255)
    assert counts_of_parts.equal(counts)
    assert loss_of_parts.item() == pytest.approx(loss.item(), rel=1e-5)


def test_large_images_that_are_shown_whole_are_told_once_with_the_flags_for_tiles(case, monkeypatch, caplog):
    network, images, labels = case
    monkeypatch.setattr(streaming_scores, "LARGE_IMAGE", 90 * 131)
    with caplog.at_level(logging.WARNING, logger="hf_segkd"):
        loss_and_counts(network, images, labels, 12, 255, tile=[48])
        assert caplog.messages == []
        for _ in range(2):
            loss_and_counts(*case, 12, 255)
    (message,) = caplog.messages
    assert "--eval_tile 1024 of train, distill and compare, --tile 1024 of evaluate" in message


def test_tiles_without_visible_seams_have_the_counts_and_the_loss_of_whole_images(case):
    network, images, labels = case
    loss, counts = loss_and_counts(*case, 12, 255)
    for batch in (images, list(images)):
        loss_of_tiles, counts_of_tiles = loss_and_counts(network, batch, labels, 12, 255, tile=[48, 64], overlap=24)
        assert loss_of_tiles.item() == pytest.approx(loss.item(), rel=1e-5)
        assert (counts_of_tiles - counts).abs().sum() <= 2  # of 2 x 130 x 101 pixels, where two classes are equal


def test_an_image_that_nobody_labelled_has_no_loss_in_tiles_either(case):
    network, images, labels = case
    loss, counts = loss_and_counts(network, images, torch.full_like(labels, 255), 12, 255, tile=[48])
    assert loss == 0
    assert counts.sum() == 0
