import pytest
import torch
import torch.nn.functional as F
from tiny_mmseg_networks import tiny_network

from hf_segkd.models import PSPNetConfig
from hf_segkd.models.modeling_pspnet import average_pool

PIXELS = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 4 - 2


def test_heads_on_shallow_resnets_are_a_quarter_as_wide():
    shallow, deep = PSPNetConfig(), PSPNetConfig(backbone="resnet101")
    assert (shallow.backbone, shallow.channels, shallow.auxiliary_channels) == ("resnet18", 128, 64)
    assert (deep.channels, deep.auxiliary_channels) == (512, 256)
    assert deep.backbone_config.dilations[2:] == [[1] + [2] * 22, [2, 4, 4]]
    assert deep.backbone_config.strides == [1, 2, 1, 1]


def test_the_pyramid_is_averages_over_grids_beside_the_map_itself():
    model = tiny_network("pspnet", pool_scales=[1, 4])
    with torch.inference_mode():
        features = model(PIXELS, output_features=True).features
        x = features["backbone_post"]
        one, four = (F.adaptive_avg_pool2d(x, scale) for scale in (1, 4))
        one = F.relu(model.head.branches[0](x.mean((2, 3), keepdim=True)))
        four = F.relu(model.head.branches[1](four))
        four = F.interpolate(four, size=x.shape[-2:], mode="bilinear", align_corners=False)
        expected = model.head.project(torch.cat([x, one.expand(-1, -1, *x.shape[-2:]), four], dim=1))
    torch.testing.assert_close(features["decoder_pre"], expected)


@pytest.mark.parametrize("size", [(7, 12), (3, 5), (1, 1)])
@pytest.mark.parametrize("bins", [1, 2, 6])
def test_average_pooling_is_pytorchs_adaptive_one(size, bins):
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(average_pool(x, bins), F.adaptive_avg_pool2d(x, bins))


def test_one_image_works_in_evaluation_and_is_refused_in_training_where_a_scale_leaves_one_value():
    model = tiny_network("pspnet")
    with torch.inference_mode():
        assert torch.isfinite(model(PIXELS[:1]).logits).all()
    with pytest.raises(ValueError, match="batch of one image"):
        model.train()(PIXELS[:1])
    assert tiny_network("pspnet", pool_scales=[2, 3]).train()(PIXELS[:1]).logits.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"backbone": "resnet20"}, "resnet18, resnet34"),
        ({"pool_scales": []}, "at least one"),
        ({"pool_scales": [0, 1]}, "positive"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"auxiliary_channels": 0}, "auxiliary_channels must be at least 1"),
        ({"classifier_dropout": 1.0}, "probability"),
        ({"num_labels": 1}, "at least 2"),
        ({"pool_scale": [1]}, "'pool_scales'"),
    ],
)
def test_what_cannot_be_built_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PSPNetConfig(**kwargs)
