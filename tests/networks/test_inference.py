import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_runs import network
from transformers import SegformerImageProcessor

from hf_segkd.networks import inference
from hf_segkd.networks.inference import classes_at, logits_at, predict

WHOLE = SegformerImageProcessor(do_resize=False, do_reduce_labels=False)


def picture(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_labels", [1, 2, 7, 8, 9, 15, 16, 19, 21, 23, 60, 150])
def test_the_classes_are_those_of_all_logits_at_once_bit_for_bit(num_labels, layout):
    generator = torch.Generator().manual_seed(num_labels)
    for size in ((1, 1), (33, 70), (40, 41), (117, 163), (128, 64)):
        for small in ((1, 1), (10, 13), (33, 65)):
            logits = torch.randn(2, num_labels, *small, generator=generator).contiguous(memory_format=layout)
            assert classes_at(logits, size).equal(logits_at(logits, size).argmax(1))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("num_labels", [4, 19, 150])
def test_they_are_so_of_logits_that_the_network_would_have_resized(num_labels, align_corners):
    logits = torch.randn(2, num_labels, 17, 23, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(logits, size=(67, 90), mode="bilinear", align_corners=align_corners)
    for size in ((67, 90), (33, 101)):
        assert classes_at(logits, size, (67, 90), align_corners).equal(logits_at(resized, size).argmax(1))


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_network_that_leaves_its_logits_small_gives_the_same_classes(align_corners, monkeypatch):
    model, image = network(align_corners=align_corners).eval(), picture(101, 131)
    whole = predict(model, WHOLE, image)
    tiles = predict(model, WHOLE, image, 64)
    shapes = []
    model.register_forward_hook(lambda *call: shapes.append(tuple(call[-1].logits.shape[2:])))
    monkeypatch.setattr(inference, "FEW_LOGITS", 1)
    assert predict(model, WHOLE, image).equal(whole)
    assert shapes == [(26, 33)]
    assert (predict(model, WHOLE, image, 64) == tiles).float().mean() > 0.9999  # but for rounding


def test_of_equal_logits_the_lowest_class_wins():
    logits = torch.zeros(1, 20, 3, 4)
    logits[:, [9, 17]] = 1
    assert classes_at(logits, (6, 9)).unique().tolist() == [9]
    assert classes_at(torch.full((1, 20, 3, 4), -torch.inf), (3, 4)).unique().tolist() == [0]


def test_a_tile_larger_than_the_image_is_the_whole_image():
    model, image = network().eval(), picture(64, 96)
    assert predict(model, WHOLE, image, tile=128).equal(predict(model, WHOLE, image))


def test_a_network_sees_tiles_of_the_size_that_was_asked_for_wherever_the_image_ends():
    model, shapes = network().eval(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["pixel_values"].shape)), with_kwargs=True
    )
    classes = predict(model, WHOLE, picture(90, 131), tile=[64, 96], overlap=16)
    assert classes.shape == (90, 131)
    assert classes.dtype == torch.int64
    assert shapes == [(1, 3, 64, 96)] * 4


def test_tiles_are_cut_from_the_image_as_its_processor_resizes_it():
    model = network().eval()
    half = SegformerImageProcessor(size={"height": 64, "width": 96}, do_reduce_labels=False)
    image = picture(128, 192)
    assert predict(model, half, image, tile=[64, 96]).equal(predict(model, half, image, tile=[80, 100]))
    agreement = (predict(model, half, image, tile=96) == predict(model, half, image)).float().mean()
    assert agreement == 1
