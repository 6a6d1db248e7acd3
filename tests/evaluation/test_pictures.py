import numpy as np
from PIL import Image, ImageColor

from hf_segkd.evaluation.pictures import BAR_COLOURS, colour, comparison, legend, overlay, per_class_chart

PALETTE = [(0, 0, 0), (200, 0, 0)]
LAST, SECOND_LAST = (ImageColor.getrgb(name) for name in BAR_COLOURS[:0:-1])


def test_classes_get_their_colours_and_ignored_pixels_are_white():
    mask = np.array([[0, 1, 255]], dtype=np.uint8)
    assert colour(mask, PALETTE).tolist() == [[[0, 0, 0], [200, 0, 0], [255, 255, 255]]]


def test_an_overlay_mixes_image_and_classes_by_its_opacity():
    image = Image.new("RGB", (1, 1), (100, 100, 100))
    mask = np.array([[1]], dtype=np.uint8)
    assert overlay(image, mask, PALETTE, 0.0).getpixel((0, 0)) == (100, 100, 100)
    assert overlay(image, mask, PALETTE, 1.0).getpixel((0, 0)) == (200, 0, 0)
    assert overlay(image, mask, PALETTE, 0.5).getpixel((0, 0)) == (150, 50, 50)


def test_a_legend_grows_in_height_until_all_names_fit():
    narrow, wide = (legend(["background", "a long name"], PALETTE, width) for width in (120, 600))
    assert narrow.width == 120
    assert narrow.height > wide.height


def test_a_comparison_shows_every_picture_in_its_place():
    red, blue = Image.new("RGB", (50, 40), "red"), Image.new("RGB", (50, 40), "blue")
    sheet = comparison([[red, blue], [blue, red]], ["one", "two"], ["a", "b"], PALETTE)
    pixels = [sheet.getpixel(place) for place in ((25, 42), (79, 42), (25, 86), (79, 86))]
    assert pixels == [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 0, 0)]


def longest_bar(chart):
    """Pixels of the longest line in the colour of the last network; its patch in the legend is shorter than 50."""
    last = (np.array(chart) == LAST).all(-1)
    return last.sum(axis=1).max()


def test_a_bar_is_as_long_as_its_score():
    long, short = (longest_bar(per_class_chart(["a"], {"network": [score]})) for score in (0.8, 0.4))
    assert long > 400
    assert abs(long / short - 2) < 0.02


def test_a_class_without_a_score_has_no_bar():
    assert longest_bar(per_class_chart(["a", "b"], {"network": [None, None]})) < 50


def test_every_network_and_class_has_its_bar():
    chart = np.array(per_class_chart(["a", "b"], {"one": [None, 0.9], "two": [None, None]}))
    first = (chart == SECOND_LAST).all(-1)
    assert first.sum(axis=1).max() > 400


def test_many_classes_stand_in_two_columns():
    one, two = (per_class_chart(["name"] * k, {"network": [0.9] * k}) for k in (30, 60))
    assert two.height < one.height
    assert two.width == one.width
    bars = (np.array(two)[60:] == LAST).all(-1)  # below the legend
    assert bars[:, : two.width // 2].any()
    assert bars[:, two.width // 2 :].any()


def test_names_of_classes_are_no_formulas():
    per_class_chart(["$\\frac$", "_hidden"], {"network": [0.5, 0.5]})  # matplotlib would raise on such a formula


def test_names_of_several_lines_stand_on_one():
    assert legend(["a\nb"], PALETTE, 120).tobytes() == legend(["a b"], PALETTE, 120).tobytes()
