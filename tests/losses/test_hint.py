import math

import numpy as np
import pytest
import torch
from loss_cases import STUDENT, TEACHER, doubles, make_features, make_labels
from torch import nn
from torch.nn import functional as F

from hf_segkd.losses import create_loss
from hf_segkd.losses.hint import regression_distance


def by_hand(student, teacher, distance):
    """The formula pixel by pixel, in Python's floats."""
    student, teacher = np.asarray(student.tolist()), np.asarray(teacher.tolist())
    if distance == "squared":
        return math.fsum(((student - teacher) ** 2).ravel()) / student.size
    pairs = list(
        zip(np.moveaxis(student, 1, -1).reshape(-1, 5), np.moveaxis(teacher, 1, -1).reshape(-1, 5), strict=True)
    )
    cosines = [math.fsum(s * t) / math.sqrt(math.fsum(s * s)) / math.sqrt(math.fsum(t * t)) for s, t in pairs]
    return 1 - math.fsum(cosines) / len(cosines)


@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_the_distance_is_that_of_the_formula_pixel_by_pixel(distance):
    student, teacher = doubles(11, (2, 5, 3, 4), (2, 5, 3, 4))
    value = regression_distance(student, teacher, distance)
    assert value.item() == pytest.approx(by_hand(student.detach(), teacher, distance), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: regression_distance(x, teacher, distance), student)


def test_squared_is_pytorchs_mse_and_cosine_pytorchs_embedding_loss():
    # What public versions (RepDistiller's HintLoss: MSELoss; CosineEmbeddingLoss with target 1) compute.
    student, teacher = doubles(12, (2, 5, 3, 4), (2, 5, 3, 4))
    torch.testing.assert_close(regression_distance(student, teacher), nn.MSELoss()(student, teacher))
    rows = [x.movedim(1, -1).reshape(-1, 5) for x in (student, teacher)]
    expected = nn.CosineEmbeddingLoss()(*rows, torch.ones(len(rows[0])))
    torch.testing.assert_close(regression_distance(student, teacher, "cosine"), expected)


def test_cosine_is_blind_to_the_lengths_at_each_position_and_squared_is_not():
    student, teacher = doubles(13, (1, 5, 3, 4), (1, 5, 3, 4))
    scale = torch.linspace(0.5, 3.0, 12).reshape(1, 1, 3, 4)
    plain, scaled = (regression_distance(student, t, "cosine") for t in (teacher, scale * teacher))
    torch.testing.assert_close(plain, scaled)
    assert regression_distance(teacher, teacher) == 0 < regression_distance(teacher, scale * teacher)


def test_the_term_is_the_sum_over_the_maps_of_the_distance_after_a_convolution_with_bias():
    torch.manual_seed(0)
    loss = create_loss("hint", STUDENT, TEACHER, weight=3.0, taps=["low_level", "backbone"])
    student, teacher = make_features(STUDENT, 1), make_features(TEACHER, 2, sizes={"low_level": (4, 6)})
    expected = 0.0
    for tap, connector in zip(("low_level", "backbone"), loss.connectors, strict=True):
        assert connector.weight.shape == (TEACHER.channels[tap], STUDENT.channels[tap], 1, 1)
        connected = F.conv2d(student[tap], connector.weight) + connector.bias[:, None, None]
        target = F.interpolate(teacher[tap], size=student[tap].shape[2:], mode="bilinear")
        expected = expected + 3.0 * (connected - target).square().mean()
    torch.testing.assert_close(loss(student, teacher, make_labels())["hint"], expected)
    assert create_loss("hint", STUDENT, TEACHER).student_taps == ("backbone",)


def test_what_means_nothing_is_refused():
    with pytest.raises(ValueError, match="distance is 'l2'; it must be one of 'squared', 'cosine'"):
        create_loss("hint", STUDENT, TEACHER, distance="l2")
    with pytest.raises(ValueError, match="taps is empty; hint needs at least one map"):
        create_loss("hint", STUDENT, TEACHER, taps=[])
    with pytest.raises(ValueError, match=r"hint reads the student's \['neck'\]"):
        create_loss("hint", STUDENT, TEACHER, taps="neck")
