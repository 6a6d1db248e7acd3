import numpy as np
import pytest

from hf_segkd.evaluation.typical import in_words, middle_images, middle_seed

TRUTH = np.array([[10, 0], [0, 10]])


def wrong(pixels):
    """An image of 20 pixels, of which so many of the first class are taken for the second."""
    return TRUTH + np.array([[-pixels, pixels], [0, 0]])


def miou(pixels):
    return 100 * ((10 - pixels) / 10 + 10 / (10 + pixels)) / 2


@pytest.mark.parametrize(("gains", "place"), [([7.0], 0), ([3.0, 1.0], 1), ([1.0, 9.0, 4.0], 2), ([4, 1, 3, 2], 3)])
def test_the_seed_in_the_middle(gains, place):
    assert middle_seed(gains) == place


def test_the_images_in_the_middle_by_the_mean_gain_of_the_methods():
    plain = np.stack([wrong(5)] * 6)
    first = np.stack([wrong(pixels) for pixels in (0, 9, 4, 5, 6, 3)])
    second = np.stack([wrong(pixels) for pixels in (0, 9, 4, 5, 6, 9)])  # of the last image it loses more
    shown, gains = middle_images(plain, first[None])
    assert gains == pytest.approx([miou(pixels) - miou(5) for pixels in (0, 9, 4, 5, 6, 3)])
    assert shown.tolist() == [4, 3, 2, 5]  # not the best, 0, and not the worst, 1
    shown, gains = middle_images(plain, np.stack([first, second]))
    assert gains[5] == pytest.approx((miou(3) + miou(9)) / 2 - miou(5))
    assert shown.tolist() == [4, 5, 3, 2]
    assert in_words(shown, gains) == (
        f"the images in the middle by gain ({', '.join(f'{gains[i]:+.1f}' for i in shown)} points; 33 % of the images "
        "gain)"
    )


def test_few_images_are_all_shown_and_one_without_labels_never():
    empty = np.zeros((2, 2), dtype=int)
    shown, gains = middle_images(np.stack([wrong(5), empty, wrong(5)]), np.stack([wrong(1), empty, wrong(9)])[None])
    assert shown.tolist() == [2, 0]
    assert np.isnan(gains[1])
    assert in_words(shown, gains).endswith("50 % of the images gain)")
