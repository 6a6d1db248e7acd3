import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerImageProcessor

from hf_segkd.data import PhotoMetricDistortion, RandomBlur, TrainTransform
from hf_segkd.data.transforms import CropWindow

SCENE = (90, 120)


def scene(size=SCENE, seed=0):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    labels = Image.fromarray(rng.integers(0, 5, (size[0] // 10 + 1, size[1] // 10 + 1), dtype=np.uint8))
    return image, labels.resize(size[::-1], Image.Resampling.NEAREST)


def resize_then_crop(image, window: CropWindow, resample):
    (height, width), (top, left) = window.scaled_size, window.corner
    whole = image.resize((width, height), resample)
    return whole.crop((left, top, left + window.size[1], top + window.size[0]))


def away_from_pixel_edges(window, axis, source_size):
    """Which rows (axis 0) or columns of a crop are sampled clearly inside a source pixel."""
    position = (window.corner[axis] + np.arange(window.size[axis]) + 0.5) * source_size / window.scaled_size[axis]
    return abs(position - position.round()) > 1e-3


def same_draws(first, second):
    return all(torch.equal(first[key], second[key]) for key in ("pixel_values", "labels"))


@pytest.mark.parametrize("scale_base", ["image", 75])
def test_cropping_the_source_first_equals_resizing_the_whole_image_first(scale_base):
    transform = TrainTransform((48, 64), scale_range=(0.4, 2.2), scale_base=scale_base)
    image, labels = scene()
    exact = image.getchannel("R").convert("F")
    rng = np.random.default_rng(0)
    for _ in range(100):
        window = transform.draw_window(SCENE, rng)
        # In 8 bits PIL rounds after each of its two passes; in floating point nothing but the window's edges is.
        for picture, tolerance in ((exact, 0.01), (image, 2)):
            crop = np.asarray(window.cut(picture, Image.Resampling.BILINEAR)).astype(float)
            reference = np.asarray(resize_then_crop(picture, window, Image.Resampling.BILINEAR)).astype(float)
            assert crop.shape == reference.shape
            assert abs(crop - reference).max() <= tolerance  # of 255
        crop = np.asarray(window.cut(labels, Image.Resampling.NEAREST))
        reference = np.asarray(resize_then_crop(labels, window, Image.Resampling.NEAREST))
        # A sample exactly between two source pixels may fall to either side.
        rows, columns = (away_from_pixel_edges(window, axis, SCENE[axis]) for axis in (0, 1))
        assert np.array_equal(crop[rows][:, columns], reference[rows][:, columns])


def test_scale_and_place_of_the_crop_are_uniform():
    transform = TrainTransform((50, 50), scale_range=(0.5, 2.0))
    rng = np.random.default_rng(0)
    windows = [transform.draw_window((200, 100), rng) for _ in range(4000)]
    scales = np.array([window.scaled_size[0] / 200 for window in windows])
    assert abs(np.histogram(scales, bins=5, range=(0.5, 2.0))[0] / 4000 - 0.2).max() < 0.03
    places = np.array([w.corner[0] / (w.scaled_size[0] - 50) for w in windows])
    assert (places.min(), places.max()) == (0, 1)
    assert abs(np.histogram(places, bins=5, range=(0, 1))[0] / 4000 - 0.2).max() < 0.03
    assert all(w.scaled_size[0] == pytest.approx(2 * w.scaled_size[1], abs=1) for w in windows)


def test_a_base_size_makes_the_short_side_independent_of_the_image():
    transform = TrainTransform((10, 10), scale_range=(0.5, 2.0), scale_base=20)
    rng = np.random.default_rng(0)
    for image_size in ((300, 400), (40, 30)):
        short = [min(transform.draw_window(image_size, rng).scaled_size) for _ in range(500)]
        assert set(short) == set(range(10, 41))


def test_without_scaling_the_pixels_are_those_of_the_image_processor():
    image, labels = scene()
    sample = TrainTransform(SCENE, (1.0, 1.0), flip_probability=0.0)(image, labels, np.random.default_rng(0))
    processor = SegformerImageProcessor(do_resize=False)
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(sample["pixel_values"], expected, rtol=0, atol=2e-6)
    assert sample["labels"].dtype == torch.int64
    assert np.array_equal(sample["labels"].numpy(), np.asarray(labels))


def test_mean_std_and_rescale_factor_are_used():
    white = Image.new("RGB", (4, 4), (255, 51, 0))
    transform = TrainTransform(
        (4, 4), (1, 1), image_mean=(0.5, 0.1, 0.0), image_std=(0.5, 0.2, 1.0), rescale_factor=1 / 255
    )
    sample = transform(white, np.zeros((4, 4), dtype=np.uint8), np.random.default_rng(0))
    torch.testing.assert_close(sample["pixel_values"][:, 0, 0], torch.tensor([1.0, 0.5, 0.0]))


def test_padding_is_the_mean_colour_and_the_ignored_label_to_the_right_and_below():
    image, labels = Image.new("RGB", (20, 10), (255, 255, 255)), np.ones((10, 20), dtype=np.uint8)
    sample = TrainTransform((16, 32), (1.0, 1.0))(image, labels, np.random.default_rng(0))
    assert sample["pixel_values"].shape == (3, 16, 32)
    assert (sample["pixel_values"][:, :10, :20] > 1).all()
    padding = torch.ones(16, 32, dtype=torch.bool)
    padding[:10, :20] = False
    assert (sample["pixel_values"][:, padding] == 0).all()
    assert (sample["labels"] == torch.where(padding, 255, 1)).all()


def test_image_and_labels_are_flipped_together_and_half_of_the_time():
    _, labels = scene()
    shown = Image.fromarray(np.repeat(np.asarray(labels)[..., None] * 50, 3, axis=2))
    transform = TrainTransform(SCENE, (1.0, 1.0), image_mean=(0, 0, 0), image_std=(1, 1, 1), rescale_factor=1 / 50)
    flipped = 0
    for seed in range(200):
        sample = transform(shown, labels, np.random.default_rng(seed))
        assert torch.equal(sample["pixel_values"][0].round().long(), sample["labels"])
        flipped += not np.array_equal(sample["labels"].numpy(), np.asarray(labels))
    assert 75 < flipped < 125


def test_equal_generators_give_equal_samples_and_the_inputs_stay_as_they_were():
    image, labels = scene()
    before = image.tobytes(), labels.tobytes()
    transform = TrainTransform((48, 64), photometric="jitter")
    first, second, other = (transform(image, labels, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert same_draws(first, second)
    assert not same_draws(first, other)
    assert (image.tobytes(), labels.tobytes()) == before


def test_annotations_may_be_arrays():
    image, labels = scene()
    transform = TrainTransform((48, 64))
    samples = [transform(image, form, np.random.default_rng(1)) for form in (labels, np.asarray(labels))]
    assert same_draws(*samples)


def test_annotations_of_another_size_or_type_are_errors():
    image, labels = scene()
    rng = np.random.default_rng(1)
    with pytest.raises(ValueError, match=r"image is \(120, 90\) and annotation \(120, 89\)"):
        TrainTransform((48, 64))(image, np.asarray(labels)[1:], rng)
    with pytest.raises(ValueError, match="must be uint8 or uint16 class ids, got int64"):
        TrainTransform((48, 64))(image, np.asarray(labels).astype(np.int64), rng)


def test_blur_softens_half_of_the_images():
    image, _ = scene()
    blurred = [RandomBlur()(image, np.random.default_rng(seed)) is not image for seed in range(200)]
    assert 75 < sum(blurred) < 125
    soft = RandomBlur(probability=1.0, max_radius=3.0)(image, np.random.default_rng(0))
    assert np.asarray(soft).std() < np.asarray(image).std()


def test_jitter_without_strength_changes_nothing_and_each_part_does_its_own():
    image = Image.new("RGB", (2, 2), (200, 100, 50))
    still = {"brightness": 0.0, "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": 0.0}

    def pixels(**strength):
        distort = PhotoMetricDistortion(**(still | strength))
        return {distort(image, np.random.default_rng(seed)).getpixel((0, 0)) for seed in range(60)}

    # The way to HSV and back costs up to two levels.
    assert all(abs(np.subtract(pixel, (200, 100, 50))).max() <= 2 for pixel in pixels())
    assert (120, 60, 30) in {tuple(round(c, -1) for c in pixel) for pixel in pixels(contrast=(0.6, 0.6))}
    shifts = [pixel[0] - 200 for pixel in pixels(brightness=32.0)]
    assert min(shifts) < -20
    assert max(shifts) > 20
    greys = pixels(saturation=(0.0, 0.0))
    assert any(max(pixel) - min(pixel) <= 1 for pixel in greys)
    assert any(pixel[2] > 120 for pixel in pixels(hue=180.0))


def test_photometric_changes_leave_the_geometry_and_the_labels_alone():
    image, labels = scene()
    plain = TrainTransform((48, 64))(image, labels, np.random.default_rng(3))
    for photometric in ("blur", "jitter", PhotoMetricDistortion(brightness=90.0)):
        sample = TrainTransform((48, 64), photometric=photometric)(image, labels, np.random.default_rng(3))
        assert torch.equal(sample["labels"], plain["labels"])


def test_crops_of_mostly_one_class_are_drawn_again():
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels[:, 60:] = 1
    labels[::2] = 255  # not labelled: neither a class nor a part of what a share is of
    image = Image.new("RGB", (100, 100))

    def shares(**options):
        transform = TrainTransform((30, 30), (1.0, 1.0), **options)
        crops = [transform(image, labels, np.random.default_rng(seed))["labels"] for seed in range(100)]
        return np.array([max((crop == c).sum() / (crop < 255).sum() for c in (0, 1)) for crop in crops])

    assert (shares(max_class_share=0.75) > 0.75).mean() < 0.2
    assert (shares() > 0.75).mean() > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (0, 4)}, "crop_size"),
        ({"scale_range": (2.0, 0.5)}, "scale_range"),
        ({"scale_range": (0.0, 0.5)}, "scale_range"),
        ({"scale_base": "short"}, "scale_base"),
        ({"flip_probability": 2}, "flip_probability"),
        ({"photometric": "colour"}, "photometric must be none, blur, jitter"),
        ({"max_class_share": 0}, "max_class_share"),
    ],
)
def test_bad_options_of_the_transform_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**({"crop_size": (4, 4)} | options))


def test_saturation_and_hue_change_one_channel_each_and_keep_the_value():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    for seed in range(8):
        rng = np.random.default_rng(seed)
        has_brightness, has_contrast, has_saturation, has_hue, _ = rng.random(5) < 0.5
        rng.random(int(has_brightness) + int(has_contrast))
        saturation = rng.uniform(0.5, 1.5) if has_saturation else 1.0
        turn = rng.uniform(-36, 36) if has_hue else 0.0
        hue, saturated, value = image.convert("HSV").split()
        hue = hue.point([round(level + turn / 360 * 256) % 256 for level in range(256)])
        saturated = saturated.point([min(255, round(level * saturation)) for level in range(256)])
        expected = Image.merge("HSV", (hue, saturated, value)).convert("RGB")
        distort = PhotoMetricDistortion(brightness=0.0, contrast=(1.0, 1.0))
        changed = distort(image, np.random.default_rng(seed))
        if has_saturation or has_hue:
            assert np.array_equal(np.asarray(changed), np.asarray(expected))
