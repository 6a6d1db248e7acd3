from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hf_segkd.export.parity import Parity, check_int8_loss, check_parity, classes_at, compare, worst_of


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"argmax_agreement": 0.998}, "99.800 %"),
        ({"miou_exported": 0.4994}, "49.940 % instead of 50.000 %"),
        ({"miou_exported": 0.5006}, "50.060 % instead of 50.000 %"),
        ({"miou_exported": float("nan")}, "nan"),
        ({"max_logit_difference": float("nan")}, "logits is nan"),
    ],
)
def test_parity_has_limits(values, wrong):
    good = {"images": 2, "max_logit_difference": 1e-5, "argmax_agreement": 0.9995, "miou": 0.5, "miou_exported": 0.4996}
    check_parity(Parity(**good), "model.onnx")
    check_parity(Parity(**good | {"max_logit_difference": None}), "model.onnx")
    with pytest.raises(ValueError, match=wrong):
        check_parity(Parity(**good | values), "model.onnx")


@pytest.mark.parametrize(
    ("miou_exported", "refused"), [(0.492, False), (0.488, True), (0.6, False), (float("nan"), True)]
)
def test_int8_may_cost_so_many_points_and_no_score_is_too_much(miou_exported, refused):
    parity = Parity(2, 0.5, 0.98, 0.5, miou_exported)
    with pytest.raises(ValueError, match="--max_int8_loss allows 1") if refused else nullcontext():
        check_int8_loss(parity, "model-int8.onnx", allowed=1.0)
    with pytest.raises(ValueError, match="logits that are not finite"):
        check_int8_loss(replace(parity, miou_exported=0.5, max_logit_difference=float("inf")), "model-int8.onnx", 1.0)


def test_of_several_sizes_the_worst_is_reported_beside_the_score_of_the_first():
    usual, other = Parity(4, 1e-6, 1.0, 0.5, 0.5), Parity(4, 2e-3, 0.9995, 0.4, 0.3)
    assert worst_of(usual, other) == Parity(4, 2e-3, 0.9995, 0.5, 0.5)
    assert worst_of(other, usual) == other
    masks = replace(usual, max_logit_difference=None)
    assert worst_of(masks, replace(other, max_logit_difference=None)) == replace(masks, argmax_agreement=0.9995)


def test_comparison_counts_what_differs():
    samples = [{"pixel_values": torch.rand(3, 4, 6), "labels": torch.zeros(8, 12, dtype=torch.int64)} for _ in range(3)]

    def first(images):  # class 0 everywhere
        return F.one_hot(torch.zeros(len(images), 4, 6, dtype=torch.int64), 2).permute(0, 3, 1, 2).float()

    def second(images):  # class 1 in the left half
        logits = first(images)
        logits[..., :3] = logits[..., :3].flip(1)
        return logits

    parity = compare(first, second, samples, num_labels=2, batch_size=2)
    assert (parity.images, parity.argmax_agreement, parity.max_logit_difference) == (3, 0.5, 1.0)
    assert (parity.miou, parity.miou_exported) == (1.0, 0.25)
    masks = compare(lambda x: first(x).argmax(1).byte(), lambda x: second(x).argmax(1).byte(), samples, num_labels=2)
    assert masks == Parity(3, None, 0.5, 1.0, 0.25)


def test_masks_are_resized_as_pictures_of_classes():
    mask = torch.tensor([[0, 7], [3, 3]], dtype=torch.uint8)
    picture = Image.fromarray(mask.numpy()).resize((5, 3), Image.Resampling.NEAREST)
    assert np.array_equal(classes_at(mask, (3, 5)), np.asarray(picture))
