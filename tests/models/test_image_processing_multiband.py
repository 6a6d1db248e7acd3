import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, SegformerImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from hf_segkd.data.image_processors import fixed_size, normalisation, num_bands, whole_image
from hf_segkd.data.multiband import MultiBandImage
from hf_segkd.models import (
    DeepLabV3PlusConfig,
    DeepLabV3PlusForSemanticSegmentation,
    HRNetConfig,
    ISANetConfig,
    MultiBandImageProcessor,
    PSPNetConfig,
    SegKDResNetConfig,
    load_pretrained_backbone,
)

MEAN, STD = [1.0, 20.0, 300.0, 4000.0], [2.0, 10.0, 50.0, 700.0]
IMAGE = np.random.default_rng(0).integers(0, 60000, (12, 16, 4), dtype=np.uint16)


def processor(**options):
    return MultiBandImageProcessor(image_mean=MEAN, image_std=STD, **options)


def test_each_band_is_normalised_with_its_own_mean_and_std():
    pixels = processor()(images=IMAGE, return_tensors="pt")["pixel_values"]
    assert (pixels.shape, pixels.dtype) == ((1, 4, 12, 16), torch.float32)
    expected = (IMAGE.astype(np.float64) - MEAN) / STD
    assert pixels[0].numpy() == pytest.approx(np.moveaxis(expected, 2, 0), rel=1e-5, abs=1e-5)
    for same in (MultiBandImage(IMAGE), [IMAGE], IMAGE.astype(np.int64), torch.from_numpy(IMAGE.astype(np.int32))):
        assert torch.equal(processor()(images=same, return_tensors="pt")["pixel_values"], pixels)
    first = processor()(images=np.moveaxis(IMAGE, 2, 0), input_data_format="channels_first", return_tensors="pt")
    assert torch.equal(first["pixel_values"], pixels)
    assert torch.equal(whole_image(processor(), MultiBandImage(IMAGE)), pixels[0])


def test_of_three_bands_it_does_what_transformers_own_does_to_rgb_but_for_rounding():
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    size = {"height": 20, "width": 33}
    own = SegformerImageProcessor(size=size)
    mean, std = [255 * m for m in own.image_mean], [255 * s for s in own.image_std]
    bands = MultiBandImageProcessor(image_mean=mean, image_std=std, size=size, do_resize=True)
    expected = own(images=image, return_tensors="pt")["pixel_values"]
    found = bands(images=image, return_tensors="pt")["pixel_values"]
    assert (found - expected).abs().max() < 1.05 / 255 / min(own.image_std)  # rounded in two passes


def test_a_saved_one_is_found_by_its_name_whatever_the_network(tmp_path):
    processor(do_resize=True, size={"height": 8, "width": 10}).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MultiBandImageProcessor
    assert (loaded.num_bands, fixed_size(loaded)) == (4, (8, 10))
    assert normalisation(loaded) == {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1.0}
    assert loaded(images=IMAGE, return_tensors="pt")["pixel_values"].shape == (1, 4, 8, 10)
    SegformerImageProcessor().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SegformerImageProcessor
    assert num_bands(AutoImageProcessor.from_pretrained(tmp_path)) is None


def test_masks_come_from_logits_as_with_transformers_own():
    outputs = SemanticSegmenterOutput(logits=torch.randn(1, 3, 6, 8))
    (mask,) = processor().post_process_semantic_segmentation(outputs, target_sizes=[(12, 16)])
    (expected,) = SegformerImageProcessor().post_process_semantic_segmentation(outputs, target_sizes=[(12, 16)])
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "must be lists with a number for each band"),
        ({"image_mean": [1.0], "image_std": [1.0, 2.0]}, "must be lists"),
        ({"image_mean": [1.0], "image_std": [0.0]}, "std above 0"),
        ({"image_mean": [1.0], "image_std": [1.0], "do_rescale": True}, "do_rescale must be False"),
    ],
)
def test_mean_and_std_are_needed_in_the_units_of_the_files(options, message):
    with pytest.raises(ValueError, match=message):
        MultiBandImageProcessor(**options)


def test_images_of_other_bands_and_segmentation_maps_are_refused():
    with pytest.raises(ValueError, match=r"The image is 12 x 16 x 3, and this network takes height x width x 4"):
        processor()(images=IMAGE[..., :3])
    with pytest.raises(ValueError, match="segmentation_maps are not resized"):
        processor()(images=IMAGE, segmentation_maps=IMAGE[..., 0])


CONFIGS = [DeepLabV3PlusConfig, PSPNetConfig, HRNetConfig, ISANetConfig]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_num_channels_are_those_of_the_backbone_and_stay_so(config_class, tmp_path):
    config = config_class(num_channels=5)
    assert config.num_channels == config.backbone_config.num_channels == 5
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).num_channels == 5
    assert config_class().num_channels == 3
    assert "num_channels" not in config.to_dict()  # told once, by the backbone
    with pytest.raises(ValueError, match="num_channels is fixed once the configuration is built"):
        config.num_channels = 4
    with pytest.raises(ValueError, match="num_channels must be the number of channels"):
        config_class(num_channels=0)


def test_num_channels_and_a_backbone_config_must_not_contradict_each_other():
    with pytest.raises(ValueError, match=r"num_channels=5 and backbone_config, which has 4, differ"):
        DeepLabV3PlusConfig(num_channels=5, backbone_config=SegKDResNetConfig(num_channels=4))
    given = {"model_type": "segkd-resnet", "out_features": ["stage1", "stage4"]}
    assert DeepLabV3PlusConfig(num_channels=5, backbone_config=given).backbone_config.num_channels == 5


def test_imagenets_weights_are_refused_for_other_channels_with_the_reason():
    model = DeepLabV3PlusForSemanticSegmentation(DeepLabV3PlusConfig(num_channels=4))
    with pytest.raises(ValueError, match=r"weights are for red, green and blue, and this backbone takes 4"):
        load_pretrained_backbone(model, "IMAGENET1K_V1")
