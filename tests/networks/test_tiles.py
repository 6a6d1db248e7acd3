import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_segkd.networks.inference import logits_at
from hf_segkd.networks.tiles import check_tile, tile_and_overlap, tiled_logits


def composed(logits_of, image, size, *tiles):
    """The blocks put together, each pixel exactly once."""
    whole, times = None, torch.zeros(size)
    for rows, columns, logits in tiled_logits(logits_of, image, size, *tiles):
        if whole is None:
            whole = torch.full((len(logits), *size), math.nan)
        whole[:, rows, columns] = logits
        times[rows, columns] += 1
    assert times.eq(1).all()
    return whole


def convolutions(stride=1):
    """A network that looks 4 pixels around (of each value of its logits)."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 5, 5, padding=2)]
    if stride > 1:
        layers = [nn.Conv2d(3, 8, stride, stride), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1)]
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.mark.parametrize("size", [(90, 131), (45, 70), (201, 160)], ids=["same size", "smaller", "larger"])
@pytest.mark.parametrize("tile", [40, (40, 57), (90, 48), 300])
def test_seams_vanish_where_the_network_looks_less_far_than_a_quarter_of_the_overlap(size, tile):
    network, image = convolutions(), torch.randn(1, 3, 90, 131)
    expected = logits_at(network(image), size)[0]
    torch.testing.assert_close(composed(network, image, size, tile, 20), expected, atol=1e-5, rtol=0)


def test_tiles_keep_the_grid_of_a_network_with_a_stride():
    network, image = convolutions(stride=4), torch.randn(1, 3, 128, 160)
    expected = logits_at(network(image), (128, 160))[0]
    torch.testing.assert_close(composed(network, image, (128, 160), 64, 32), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tile", [48, 64])
def test_the_same_holds_of_tiles_that_overlap_by_half(tile):
    network, image = convolutions(), torch.randn(1, 3, 101, 83)
    expected = logits_at(network(image), (101, 83))[0]
    torch.testing.assert_close(composed(network, image, (101, 83), tile, tile // 2), expected, atol=1e-5, rtol=0)


def test_tiles_that_disagree_fade_into_each_other_linearly_over_the_middle_half_of_their_overlap():
    answers = iter([0.0, 1.0])
    image = torch.zeros(1, 3, 8, 48)  # tiles from 0 to 32 and from 16 to 48
    blended = composed(lambda part: torch.full((1, 1, 4, 16), next(answers)), image, (8, 48), 32, 16)
    ramp = (torch.arange(8) + 0.5) / 8
    expected = torch.cat([torch.zeros(20), ramp, torch.ones(20)])
    torch.testing.assert_close(blended, expected.expand(1, 8, 48))


@pytest.mark.parametrize(("size", "stride"), [((61, 75), 4), ((40, 33), 1), ((7, 5), 2), ((128, 130), 3)])
def test_one_tile_is_the_whole_image_resized_as_torch_does(size, stride):
    image = torch.zeros(1, 3, 60, 72)
    logits = torch.randn(1, 6, 60 // stride, 72 // stride)
    expected = logits_at(logits, size)[0]
    # PyTorch's points are in float32: of 72 pixels they are off by up to 4e-6.
    torch.testing.assert_close(composed(lambda _: logits, image, size), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(128, 160), (61, 75), (200, 333)])
def test_logits_are_resized_to_the_image_first_where_a_network_does(size, align_corners):
    logits, image = torch.randn(1, 6, 16, 40), torch.zeros(1, 3, 128, 160)
    resized = F.interpolate(logits, size=(128, 160), mode="bilinear", align_corners=align_corners)
    parts = composed(lambda _: logits, image, size, None, None, align_corners)
    torch.testing.assert_close(parts, logits_at(resized, size)[0], atol=5e-5, rtol=0)


def test_what_tiles_can_not_be_is_refused():
    assert tile_and_overlap([512, 1024]) == ((512, 1024), (128, 256))
    assert tile_and_overlap(512, 64) == ((512, 512), (64, 64))
    for overlap in (0, 33, -1):
        with pytest.raises(ValueError, match=f"between 1 and half the side of a tile, here 32; got {overlap}"):
            tile_and_overlap(64, overlap)
    for tile in ([1, 2, 3], [], 0):
        with pytest.raises(ValueError, match="one side or height and width"):
            tile_and_overlap(tile)
    with pytest.raises(ValueError, match="there is no tile"):
        check_tile(None, 32)
    check_tile(None)
