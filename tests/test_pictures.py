import numpy as np
from PIL import Image

from hf_segkd.pictures import colour, comparison, legend, overlay

PALETTE = [(0, 0, 0), (200, 0, 0)]


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
