import logging

import pytest
from PIL import Image
from tiny_runs import network, processor

from hf_segkd import DistillationArguments, DistillationTrainer
from hf_segkd.data import load_segmentation_dataset
from hf_segkd.training.crop_size import measured_crop_size


@pytest.fixture
def images(tmp_path):
    """A data set of images of these (width, height), each with a mask of two classes."""

    def write(*sizes):
        for kind, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / "train" / kind).mkdir(parents=True)
            for place, size in enumerate(sizes):
                picture = Image.new(mode, size)
                picture.putpixel((0, 0), 1 if mode == "L" else (9, 9, 9))
                picture.save(tmp_path / "train" / kind / f"{place:02d}.png")
        return load_segmentation_dataset("folder", tmp_path, "train", classes=["a", "b"])

    return write


@pytest.mark.parametrize(
    ("sizes", "crop"),
    [
        ([(300, 260), (2000, 1500), (310, 256)], (256, 288)),  # medians 260 and 310
        ([(2000, 1500)], (512, 512)),
        ([(20, 90)], (64, 32)),
        ([(100, 64)] * 29 + [(500, 500)], (64, 96)),
    ],
)
def test_crops_are_as_large_as_the_images_in_the_middle(images, sizes, crop):
    assert measured_crop_size(images(*sizes)) == crop


def test_files_that_cannot_be_read_are_passed_over(images, tmp_path):
    dataset = images((64, 64), (96, 96), (96, 96))
    (tmp_path / "train" / "images" / "00.png").write_bytes(b"no picture")
    assert measured_crop_size(dataset) == (96, 96)
    with pytest.raises(ValueError, match=r"No image could be read .* Pass crop_size"):
        measured_crop_size(dataset.select([0]))


def test_a_run_without_any_size_trains_on_crops_of_the_measured_one_and_tells_it(images, tmp_path, caplog):
    keeps = processor()
    keeps.do_resize = False
    arguments = DistillationArguments(tmp_path / "run", per_device_train_batch_size=2, use_cpu=True)
    with caplog.at_level(logging.WARNING, logger="hf_segkd"):
        run = DistillationTrainer(
            network(num_labels=2), arguments, train_dataset=images((70, 40), (90, 66), (70, 66)), processing_class=keeps
        )
    assert run.train_dataset[0]["pixel_values"].shape == (3, 64, 64)
    assert run.args.crop_size == [64, 64]  # so that reports and cards have it
