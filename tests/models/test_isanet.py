import pytest
import torch
import torch.nn.functional as F
from tiny_mmseg_networks import tiny_network

from hf_segkd.models import ISANetConfig
from hf_segkd.models.modeling_isanet import from_groups, to_groups

PIXELS = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 4 - 2


def test_heads_on_shallow_resnets_are_a_quarter_as_wide():
    shallow, deep = ISANetConfig(), ISANetConfig(backbone="resnet101")
    assert (shallow.channels, shallow.attention_channels, shallow.auxiliary_channels) == (128, 64, 64)
    assert (deep.channels, deep.attention_channels, deep.auxiliary_channels) == (512, 256, 256)


def test_groups_are_neighbours_or_the_same_place_of_every_block():
    rows, columns, height, width = 2, 3, 4, 5
    x = torch.arange(2 * rows * height * columns * width).float().view(2, 1, rows * height, columns * width)
    local = to_groups(x, (height, width), local=True)
    assert torch.equal(local[0, columns + 2, :, 0], x[0, 0, height:, 2 * width :].flatten())
    far_apart = to_groups(x, (height, width), local=False)
    assert torch.equal(far_apart[1, 2 * width + 3, :, 0], x[1, 0, 2::height, 3::width].flatten())
    for kind, groups in ((True, local), (False, far_apart)):
        assert torch.equal(from_groups(groups, x.shape[-2:], (height, width), kind), x)


@torch.inference_mode()
def test_each_attention_is_a_softmax_over_the_pixels_of_a_group():
    model = tiny_network("isanet").double()
    attention = model.head.global_attention
    x = torch.rand(1, 8, 4, 6, dtype=torch.float64)
    actual = attention(x, (2, 3), local=False)
    query, key = (
        F.relu(layers[1](F.relu(layers[0](x))))[..., 1::2, 2::3].flatten(2)
        for layers in (attention.query, attention.key)
    )
    value = attention.value(x)[..., 1::2, 2::3].flatten(2)
    weights = (query.transpose(1, 2) @ key / query.shape[1] ** 0.5).softmax(dim=-1)
    attended = torch.zeros_like(x)
    attended[..., 1::2, 2::3] = (value @ weights.transpose(1, 2)).unflatten(2, (2, 2))
    expected = F.relu(attention.output(attended))[..., 1::2, 2::3]
    torch.testing.assert_close(actual[..., 1::2, 2::3], expected)


def test_a_change_of_one_pixel_reaches_the_whole_map():
    head = tiny_network("isanet", group_size=[4, 4]).head
    # All positive, so that no ReLU is in the way of a change.
    for parameter in head.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.1)
    x = torch.rand(1, 64, 9, 13)
    moved = x.clone()
    moved[0, :, 4, 6] += 1.0
    with torch.inference_mode():
        assert (head(moved) - head(x)).abs().amin() > 0


def test_one_image_is_enough_for_training():
    assert tiny_network("isanet").train()(PIXELS[:1]).logits.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backbone": "resnet20"}, "resnet18, resnet34"),
        ({"group_size": [8]}, "height and width"),
        ({"group_size": [8, 0]}, "positive"),
        ({"attention_channels": 0}, "attention_channels must be at least 1"),
        ({"isa_channels": 64}, "unknown keyword"),
    ],
)
def test_what_cannot_be_built_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ISANetConfig(**kwargs)
