import itertools

import numpy as np
import pytest
import torch

from hf_segkd.evaluation.bootstrap import class_counts, differences, paired_gain, resampled_means, stretch, t_quantile
from hf_segkd.evaluation.image_counts import read_image_counts, write_image_counts
from hf_segkd.evaluation.metrics import scores_from_confusion_matrix

SEEDS, IMAGES, CLASSES = 3, 4, 3


def matrices(seed, low=0):
    """Counts of three seeds and four images; class 2 is in the last image only."""
    counts = np.random.default_rng(seed).integers(low, 50, (SEEDS, IMAGES, CLASSES, CLASSES))
    counts[:, :3, 2], counts[:, :3, :, 2] = 0, 0
    return counts


def percent(counts):
    return 100 * scores_from_confusion_matrix(torch.as_tensor(counts))["mean_iou"]


def test_each_resample_is_scored_as_the_metric_scores_the_images_that_were_drawn():
    method, baseline = matrices(0), matrices(1)
    draws = np.random.default_rng(2).integers(IMAGES, size=(20, IMAGES))
    weights = np.stack([np.bincount(draw, minlength=IMAGES) for draw in draws]).astype(float)
    gains, _ = differences(class_counts(method), class_counts(baseline), weights)
    for seed, (index, draw) in itertools.product(range(SEEDS), enumerate(draws)):
        expected = percent(method[seed, draw].sum(0)) - percent(baseline[seed, draw].sum(0))
        assert 100 * gains[seed, index] == pytest.approx(expected, abs=1e-9)


def test_the_interval_is_that_of_all_resamples_there_are():
    # Two seeds and three images: 2^2 x 3^3 resamples, all as likely as each other.
    method, baseline = matrices(3)[:2, 1:], matrices(4)[:2, 1:]
    every = []
    for drawn in itertools.product(range(3), repeat=3):
        gains = [percent(method[s, list(drawn)].sum(0)) - percent(baseline[s, list(drawn)].sum(0)) for s in range(2)]
        for seeds in itertools.product(range(2), repeat=2):
            away = np.mean([gains[s] for s in seeds]) - np.mean(gains)
            every.append(np.mean(gains) + np.sqrt(2) * 12.706 / 1.96 * away)
    gain = paired_gain(class_counts(method), class_counts(baseline), draws=20_000)
    whole = [percent(method[s].sum(0)) - percent(baseline[s].sum(0)) for s in range(2)]
    assert gain.of_seeds == pytest.approx(whole)
    assert gain.mean == pytest.approx(np.mean(whole))
    # A quantile that lies in a gap of so few values may fall on either side of it.
    for end, quantile in ((gain.low, 0.025), (gain.high, 0.975)):
        assert np.quantile(every, quantile - 0.01, method="lower") <= end + 1e-9
        assert end <= np.quantile(every, quantile + 0.01, method="higher") + 1e-9


def test_seeds_and_images_are_drawn_the_same_for_both_sides():
    # The method is the baseline in other words: pairs cancel, whatever was drawn.
    gain = paired_gain(class_counts(matrices(5)), class_counts(matrices(5)))
    assert (gain.mean, gain.low, gain.high) == (0, 0, 0)
    assert not gain.is_certain
    values, drawn = np.array([[1.0, 10.0], [3.0, 30.0]]), np.array([[0, 0], [0, 1]])
    assert resampled_means(values, drawn).tolist() == [2.0 - stretch(2), 20.0]


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_of_a_handful_of_seeds_holds_the_truth_19_times_of_20(seeds):
    # Without the stretch three seeds would hold it 3 times of 4.
    generator = np.random.default_rng(seeds)
    drawn, held = generator.integers(seeds, size=(2000, seeds)), []
    for _ in range(1000):
        values = np.repeat(generator.normal(size=(seeds, 1)), len(drawn), axis=1)
        low, high = np.quantile(resampled_means(values, drawn), [0.025, 0.975])
        held.append(low <= 0 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


def test_quantiles_of_students_t_are_those_of_the_tables():
    assert [t_quantile(freedom) for freedom in (2, 10)] == [4.303, 2.228]
    for freedom, value in ((11, 2.201), (20, 2.086), (30, 2.042), (120, 1.980)):
        assert t_quantile(freedom) == pytest.approx(value, abs=3e-3)


def test_classes_have_gains_of_their_own_and_one_that_is_nowhere_has_none():
    baseline = np.zeros((2, 5, 3, 3), dtype=int)
    baseline[..., 0, 0], baseline[..., 1, 1], baseline[..., 1, 0] = 10, 10, 10
    method = baseline.copy()
    method[..., 1, 1], method[..., 1, 0] = 20, 0  # class 1: 50 to 100 %, class 0: 50 to 100 %
    gain = paired_gain(class_counts(method), class_counts(baseline))
    np.testing.assert_allclose(gain.of_classes[:2], 50.0)
    assert np.isnan(gain.of_classes[2]).all()
    assert gain.is_certain


def test_the_seeds_that_are_needed_come_from_the_spread_over_seeds_that_images_leave_over():
    images = np.zeros((2, 1, 2, 2), dtype=int)  # one image: no spread but that of the seeds
    images[..., 0, 0], images[..., 1, 1] = 100, 100
    worse = images.copy()
    worse[0, :, 1, 1], worse[0, :, 1, 0] = 99, 1
    worse[1, :, 1, 1], worse[1, :, 1, 0] = 90, 10
    gain = paired_gain(class_counts(images), class_counts(worse))
    mean, spread = np.mean(gain.of_seeds), np.std(gain.of_seeds, ddof=1)
    assert gain.seeds_needed == 8
    assert 2.365 * spread / np.sqrt(8) < mean < 2.447 * spread / np.sqrt(7)
    assert paired_gain(class_counts(images[:1]), class_counts(worse[:1])).seeds_needed is None


def test_sides_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"same seeds, images and classes on both sides; .*\(3, 4, 3, 3\) and \(2, 4"):
        paired_gain(class_counts(matrices(0)), class_counts(matrices(0)[:2]))


def test_counts_of_images_are_written_and_read(tmp_path):
    counts = matrices(6)[0]
    write_image_counts(tmp_path / "new" / "counts.npz", counts.reshape(IMAGES, -1), ["a", "b", "c", "d"])
    names, read = read_image_counts(tmp_path / "new" / "counts.npz")
    assert names == ["a", "b", "c", "d"]
    assert np.array_equal(read, counts)
    with pytest.raises(ValueError, match=r"written as \.npz, got .*counts\.json"):
        write_image_counts(tmp_path / "counts.json", counts, names)
    with pytest.raises(ValueError, match="4 matrices for 1 images"):
        write_image_counts(tmp_path / "counts.npz", counts, ["a"])
