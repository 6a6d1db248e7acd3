"""What the networks in mmsegmentation's form add: auxiliary head, dropout of channels, small classifiers."""

import pytest
import torch
import torch.nn.functional as F
from tiny_mmseg_networks import NETWORKS, TINY_BACKBONE, tiny_network

PIXELS = torch.rand(2, 3, 65, 97, generator=torch.Generator().manual_seed(0)) * 4 - 2
LABELS = torch.randint(0, 5, (2, 65, 97), generator=torch.Generator().manual_seed(1))
EACH = pytest.mark.parametrize("kind", NETWORKS)


@EACH
def test_the_auxiliary_head_adds_its_weighted_loss_in_training_alone(kind):
    model = tiny_network(kind, classifier_dropout=0.0, auxiliary_loss_weight=0.3)
    labels = LABELS.clone()
    labels[:, :20] = 255
    for training in (False, True):
        model.train(training)
        with torch.no_grad():
            output = model(PIXELS, labels, output_features=True)
            auxiliary = model.auxiliary_head(output.features["stage3"])
            auxiliary = F.interpolate(auxiliary, size=(65, 97), mode="bilinear", align_corners=False)
        expected = F.cross_entropy(output.logits, labels, ignore_index=255)
        expected += training * 0.3 * F.cross_entropy(auxiliary, labels, ignore_index=255)
        torch.testing.assert_close(output.loss, expected)


@EACH
def test_without_an_auxiliary_head_the_backbone_needs_no_map_for_it(kind):
    ends = {**TINY_BACKBONE, "out_features": ["stage1", "stage4"] if kind == "deeplabv3plus" else ["stage4"]}
    model = tiny_network(kind, use_auxiliary_head=False, backbone_config=ends).train()
    assert model.auxiliary_head is None
    assert model(PIXELS, LABELS).loss.isfinite()
    with pytest.raises(ValueError, match=r"returns \d map.*out_features"):
        tiny_network(kind, backbone_config=ends)


@EACH
def test_the_dropout_before_the_classifiers_drops_whole_channels(kind):
    model = tiny_network(kind, classifier_dropout=0.5).train()
    for dropout in (model.classifier_dropout, model.auxiliary_head.dropout):
        dropped = dropout(torch.ones(4, 16, 3, 3)).eq(0)
        assert dropped.any()
        assert torch.equal(dropped, dropped[:, :, :1, :1].expand_as(dropped))


@EACH
def test_classifiers_start_small_and_the_rest_with_kaiming_normal_weights(kind):
    model = tiny_network(kind, num_labels=200)
    for classifier in (model.classifier, model.auxiliary_head.classifier):
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert classifier.bias.eq(0).all()
    conv = model.auxiliary_head.conv.conv.weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.15)
