import numpy as np
import pytest
import torch

from hf_segkd.losses.labels import class_weights
from hf_segkd.losses.labels.class_weights import check_class_weights


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("inverse", [1.0, 4.0, 16.0]), ("sqrt", [1.0, 2.0, 4.0])],
)
def test_weights_are_in_proportion_to_one_over_the_count_or_its_root(kind, expected):
    weights = np.array(class_weights([1600, 400, 100], kind))
    assert weights == pytest.approx(3 * np.array(expected) / sum(expected), rel=1e-12)


def test_effective_numbers_are_the_sum_of_powers_of_beta():
    counts, beta = [50, 7, 1], 0.9
    numbers = np.array([sum(beta**power for power in range(count)) for count in counts])  # eq. 2: a geometric sum
    expected = (1 / numbers) / (1 / numbers).mean()
    assert class_weights(counts, "effective", beta) == pytest.approx(expected, rel=1e-12)


def test_effective_numbers_do_not_depend_on_the_size_of_the_images():
    small, large = (class_weights(np.array([50, 7, 1]) * factor, "effective") for factor in (10_000, 10_000_000))
    assert small == pytest.approx(large, rel=1e-3)
    assert 1 < small[1] / small[0] < 50 / 7
    assert small[2] / small[1] == pytest.approx(7, rel=0.3)


def test_the_papers_beta_would_weigh_pixels_all_alike():
    assert class_weights([50_000_000, 7_000_000, 1_000_000], "effective", 0.9999) == pytest.approx([1, 1, 1], rel=1e-9)


def test_a_class_that_never_occurs_weighs_1_and_does_not_count_for_the_others():
    for kind in ("inverse", "sqrt", "effective"):
        first, absent, last = class_weights(torch.tensor([900, 0, 100]), kind)
        assert absent == 1
        assert [first, last] == pytest.approx(class_weights([900, 100], kind))


def test_what_makes_no_weights_is_refused():
    with pytest.raises(ValueError, match="class_weights is 'median'; it must be one of 'inverse', 'sqrt'"):
        class_weights([1, 2], "median")
    with pytest.raises(ValueError, match="need the pixels of each class, some of them above 0"):
        class_weights([0, 0], "inverse")
    with pytest.raises(ValueError, match="beta is for 'effective', above 0 and below 1; got 1"):
        class_weights([1, 2], "effective", 1)
    with pytest.raises(ValueError, match="has 2 numbers, and the student has 3 classes"):
        check_class_weights([1, 2], 3)
    for wrong in ([1, -1], [float("nan"), 1], [0, 0]):
        with pytest.raises(ValueError, match="must be 0 or more, finite, and not all 0"):
            check_class_weights(wrong, 2)
