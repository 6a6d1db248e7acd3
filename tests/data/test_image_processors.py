import pytest
from PIL import Image
from tiny_runs import arguments, network, processor, scenes
from transformers import DPTImageProcessor, EomtImageProcessor, MobileViTImageProcessor

from hf_segkd.commands import predict as predict_command
from hf_segkd.data import EvaluationDataset
from hf_segkd.networks.inference import predict
from hf_segkd.networks.loading import load_network
from hf_segkd.training.trainer import DistillationTrainer

# 32 x 48 images would be shown without their sides, as two squares, with a border.
NOT_WHOLE = {
    "do_center_crop": MobileViTImageProcessor(do_resize=False, crop_size={"height": 32, "width": 32}),
    "do_split_image": EomtImageProcessor(do_split_image=True, size={"shortest_edge": 32, "longest_edge": None}),
    "do_pad": DPTImageProcessor(do_resize=False, do_pad=True, size_divisor=32),
}


@pytest.mark.parametrize(("option", "image_processor"), NOT_WHOLE.items())
def test_a_processor_that_does_not_keep_whole_images_is_refused_wherever_images_are_scored(
    option, image_processor, tmp_path
):
    with pytest.raises(ValueError, match=option):
        EvaluationDataset(scenes("val", 1), image_processor)[0]
    with pytest.raises(ValueError, match=option):
        predict(network().eval(), image_processor, Image.new("RGB", (48, 32)))
    for data in ({"eval_dataset": scenes("val", 1)}, {"train_dataset": scenes()}):
        with pytest.raises(ValueError, match=option):
            DistillationTrainer(
                network(), arguments(tmp_path, crop_size=[32, 32]), processing_class=image_processor, **data
            )


def test_a_loaded_network_is_scored_on_whole_images_though_its_processor_would_keep_the_centre(tmp_path, caplog):
    network().save_pretrained(tmp_path)
    NOT_WHOLE["do_center_crop"].save_pretrained(tmp_path)
    _, loaded = load_network(str(tmp_path))
    assert not loaded.do_center_crop
    assert "switched off" in caplog.text
    assert EvaluationDataset(scenes("val", 1), loaded)[0]["pixel_values"].shape == (3, 32, 48)


def test_masks_of_more_classes_than_a_byte_tells_apart_have_16_bits(tmp_path):
    network(id2label={index: str(index) for index in range(257)}, label2id=None).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    places = ["--images", str(tmp_path / "image.png"), "--output", str(tmp_path / "pictures")]
    predict_command.main(["--model", str(tmp_path), *places])
    assert Image.open(tmp_path / "pictures" / "image_mask.png").mode == "I;16"
