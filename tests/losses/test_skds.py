import math

import numpy as np
import pytest
import torch
from loss_cases import NUM_LABELS, STUDENT, TEACHER, draw, make_features, make_labels, value_and_gradient

from hf_segkd.losses import create_loss
from hf_segkd.losses.kd import pixel_wise_divergence
from hf_segkd.losses.skds import pair_wise_distance, summed_cross_entropy
from hf_segkd.types import NetworkSpec

# --- pair-wise ---


def nodes_by_loops(features, kernel):
    """List over images of lists of nodes, each the list of the channels' maxima over a region."""
    height, width = kernel
    images = []
    for image in features:
        rows, columns = range(0, image.shape[1], height), range(0, image.shape[2], width)
        regions = [image[:, y : y + height, x : x + width] for y in rows for x in columns]
        images.append([[channel.max() for channel in region] for region in regions])
    return images


def pair_wise_by_loops(student, teacher, kernel, norm):
    """`norm` makes of the list of a node's channels its length."""
    total, count = 0.0, 0
    for s_nodes, t_nodes in zip(nodes_by_loops(student, kernel), nodes_by_loops(teacher, kernel), strict=True):
        s_norms, t_norms = [[norm(node) for node in nodes] for nodes in (s_nodes, t_nodes)]
        for i in range(len(s_nodes)):
            for j in range(len(s_nodes)):
                s = sum(a * b for a, b in zip(s_nodes[i], s_nodes[j], strict=True)) / (s_norms[i] * s_norms[j])
                t = sum(a * b for a, b in zip(t_nodes[i], t_nodes[j], strict=True)) / (t_norms[i] * t_norms[j])
                total, count = total + (t - s) ** 2, count + 1
    return total / count


def length(node):
    return sum(x * x for x in node) ** 0.5


def constant_length(node):
    return math.sqrt(sum(x.item() ** 2 for x in node))


@pytest.mark.parametrize(
    ("variant", "scale", "size", "kernel", "norm"),
    [
        ("official", 0.5, (5, 6), (2, 3), constant_length),  # 3 x 2 nodes: odd sides leave a border node
        ("official", 0.25, (5, 8), (1, 2), constant_length),
        ("official", 0.5, (1, 4), (1, 2), constant_length),
        ("cirkd", 0.5, (5, 4), (2, 2), length),
    ],
)
def test_the_pair_wise_distance_is_the_formula_written_as_loops_with_its_gradient(variant, scale, size, kernel, norm):
    student, teacher = (x.double() for x in draw(1, (2, 3, *size), (2, 4, *size)))
    expected, expected_gradient = value_and_gradient(lambda s: pair_wise_by_loops(s, teacher, kernel, norm), student)
    value, gradient = value_and_gradient(lambda s: pair_wise_distance(s, teacher, variant, scale), student)
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0.0)  # official adds 1e-8 to the norms
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-12)


def test_the_pair_wise_value_and_gradient_are_those_of_the_authors_code():
    student, teacher = draw(12, (2, 16, 12, 20), (2, 32, 12, 20))
    value, gradient = value_and_gradient(lambda s: pair_wise_distance(s, teacher), student)
    assert value.item() == pytest.approx(0.00024496769765391946, rel=2e-5)
    assert gradient.norm().item() == pytest.approx(0.0012140661125429745, rel=2e-5)
    assert gradient.sum().item() == pytest.approx(-0.0023021294684184568, rel=2e-5)


def test_an_odd_map_has_border_nodes():
    student, teacher = draw(0, (1, 3, 65, 64), (1, 3, 65, 64))
    cut = pair_wise_distance(student[..., :64, :], teacher[..., :64, :])  # 2 x 2 nodes
    assert not torch.isclose(pair_wise_distance(student, teacher), cut)  # 3 x 2


@pytest.mark.parametrize("variant", ["official", "cirkd"])
def test_the_scale_of_a_map_does_not_matter_and_equal_maps_cost_nothing(variant):
    student, teacher = draw(2, (2, 8, 12, 20), (2, 16, 12, 20))
    value = pair_wise_distance(student, teacher, variant)
    torch.testing.assert_close(pair_wise_distance(100 * student, teacher / 7, variant), value)
    assert pair_wise_distance(student, 3 * student, variant) < 1e-12


@pytest.mark.parametrize("variant", ["official", "cirkd"])
def test_a_node_that_the_relu_left_empty_gets_no_gradient(variant):
    student, teacher = draw(2, (2, 8, 12, 20), (2, 16, 12, 20))
    student = student.relu()
    student[..., :6, :10] = 0.0  # a node of the official form, fifteen of CIRKD's
    _, gradient = value_and_gradient(lambda s: pair_wise_distance(s, teacher, variant), student)
    assert not gradient[..., :6, :10].any()
    assert 0 < gradient.abs().max() < 0.1  # divided by a small number instead of their length: above 1e5


# --- pixel-wise ---


def test_the_official_pixel_wise_term_is_that_of_the_authors_code():
    student, teacher = draw(0, (2, 19, 12, 20), (2, 19, 12, 20), scale=3.0)
    spec = NetworkSpec(channels={"logits": 19}, num_labels=19)
    loss = create_loss("skds", spec, spec, preset="official", weight=1.0, pair_weight=0, adversarial_weight=0)
    labels = torch.zeros(2, 12, 20, dtype=torch.long)
    value, gradient = value_and_gradient(
        lambda s: loss({"logits": s}, {"logits": teacher}, labels)["skds_pixel"], student
    )
    assert value.item() == pytest.approx(12.358503341674805, rel=2e-5)
    assert gradient.norm().item() == pytest.approx(0.08279273702774195, rel=2e-5)
    first = torch.tensor([-1.0720624231908005e-05, -3.222080340492539e-05, 2.8016727810609154e-05])
    torch.testing.assert_close(gradient.flatten()[:3], first, rtol=2e-5, atol=1e-10)
    _, mean_gradient = value_and_gradient(lambda s: pixel_wise_divergence(s, teacher), student)
    torch.testing.assert_close(gradient, 2 * mean_gradient, rtol=1e-4, atol=1e-9)  # two images


# --- the loss ---


@pytest.mark.parametrize(
    ("preset", "weights", "objective", "optimizer"),
    [
        ("default", (10.0, 0.5, 0.1), "wgan-gp", torch.optim.SGD),
        ("official", (10.0, 0.5, 0.1), "wgan-gp", torch.optim.SGD),
        ("cirkd", (1.0, 10.0, 0.001), "hinge", torch.optim.Adam),
    ],
)
def test_presets_are_the_published_settings(preset, weights, objective, optimizer):
    loss = create_loss("skds", STUDENT, TEACHER, preset=preset)
    assert tuple(loss.weights.values()) == weights
    assert loss.adversary.objective == objective
    assert type(loss.adversary.optimizer) is optimizer
    student, teacher = make_features(STUDENT, 1), make_features(TEACHER, 2)
    terms = loss.eval().unweighted(student, teacher, make_labels())
    pixel_wise = summed_cross_entropy if preset == "official" else pixel_wise_divergence
    torch.testing.assert_close(terms["skds_pixel"], pixel_wise(student["logits"], teacher["logits"]))
    pair = pair_wise_distance(student["decoder"], teacher["decoder"], "cirkd" if preset == "cirkd" else "official")
    torch.testing.assert_close(terms["skds_pair"], pair)
    score = loss.adversary.discriminator(student["logits"]).mean()
    torch.testing.assert_close(terms["skds_adversarial"], -score)


def test_explicit_arguments_win_over_the_preset():
    options = {"pair_weight": 3.0, "tap": "encoder", "variant": "official", "objective": "wgan-gp"}
    loss = create_loss("skds", STUDENT, TEACHER, preset="cirkd", weight=2.0, **options)
    assert loss.weights == {"skds_pixel": 2.0, "skds_pair": 3.0, "skds_adversarial": 0.001}
    assert loss.adversary.objective == "wgan-gp"
    assert type(loss.adversary.optimizer) is torch.optim.SGD
    student, teacher = make_features(STUDENT, 1), make_features(TEACHER, 2)
    expected = 3 * pair_wise_distance(student["encoder"], teacher["encoder"])
    torch.testing.assert_close(loss(student, teacher, make_labels())["skds_pair"], expected)


def test_a_part_of_weight_0_is_left_out_with_all_it_costs():
    bare = NetworkSpec(channels={"logits": NUM_LABELS}, num_labels=NUM_LABELS)
    loss = create_loss("skds", bare, bare, pair_weight=0, adversarial_weight=0)
    assert loss.weights.keys() == {"skds_pixel"}
    assert list(loss.state_dict()) == []
    other = NetworkSpec(channels={"decoder": 3}, num_labels=NUM_LABELS + 2)  # its logits are not asked for
    assert create_loss("skds", STUDENT, other, weight=0, adversarial_weight=0).teacher_taps == ("decoder",)
    alone = create_loss("skds", STUDENT, TEACHER, weight=0, pair_weight=0)
    assert alone(make_features(STUDENT, 1), make_features(TEACHER, 2), make_labels()).keys() == {"skds_adversarial"}


@pytest.mark.usefixtures("_small_discriminator")
def test_small_logits_of_the_teacher_are_aligned_before_the_discriminator_sees_them():
    loss = create_loss("skds", STUDENT, TEACHER)
    teacher = make_features(TEACHER, 2, sizes={}, default_size=(17, 25))
    loss(make_features(STUDENT, 1), teacher, make_labels())
    loss.adversary.learn(np.random.default_rng(0))
    loss.adversary.update(0.0)
    assert all(parameter.isfinite().all() for parameter in loss.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "paper"}, "preset is 'paper'; it must be one of 'default', 'official', 'cirkd'"),
        ({"reduction": "none"}, "reduction is 'none'; it must be one of 'mean', 'sum'"),
        ({"variant": "paper"}, "variant is 'paper'; it must be one of 'official', 'cirkd'"),
        ({"objective": "gan"}, "objective is 'gan'; it must be one of 'wgan-gp', 'hinge'"),
        ({"adversarial_weight": -0.1}, "weight of skds_adversarial is -0.1; it must be 0 or more"),
    ],
)
def test_values_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_loss("skds", STUDENT, TEACHER, **options)


def test_other_class_counts_are_refused():
    other = NetworkSpec(channels={**TEACHER.channels, "logits": 7}, num_labels=7)
    with pytest.raises(ValueError, match="student has 5 classes and the teacher 7"):
        create_loss("skds", STUDENT, other)
