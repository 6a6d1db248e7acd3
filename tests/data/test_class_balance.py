import numpy as np
import pytest
import torch
from PIL import Image

from hf_segkd.data import AugmentedDataset, TrainTransform, load_segmentation_dataset
from hf_segkd.data.class_balance import count_classes, drawn_rows, repeat_factors


def folder(root, masks):
    for place, mask in enumerate(masks):
        for kind, array in (("images", np.zeros((*np.shape(mask), 3))), ("masks", np.array(mask))):
            (root / "train" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(root / "train" / kind / f"{place}.png")
    return load_segmentation_dataset("folder", root, "train", classes=["a", "b", "c"])


MASKS = [[[0, 0], [1, 255]], [[0, 0], [0, 0]], [[2, 2], [255, 255]]]
COUNTS = [[2, 1, 0], [4, 0, 0], [0, 0, 2]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pixels_of_each_class_are_counted_in_each_mask(num_workers, tmp_path):
    state = torch.random.get_rng_state()
    counts = count_classes(folder(tmp_path, MASKS), num_workers=num_workers, progress=False)
    assert counts.tolist() == COUNTS
    assert torch.equal(torch.random.get_rng_state(), state)


def test_rows_that_are_not_asked_for_count_nothing_so_that_processes_can_share_them(tmp_path):
    images = folder(tmp_path, MASKS)
    parts = [count_classes(images, rows=range(rank, 3, 2), progress=False) for rank in range(2)]
    assert parts[0][1].tolist() == [0, 0, 0]
    assert sum(parts).tolist() == COUNTS


def test_no_image_is_read_and_a_mask_that_cannot_be_counts_nothing(tmp_path):
    images = folder(tmp_path, MASKS)
    (tmp_path / "train" / "images" / "0.png").write_bytes(b"no image")
    (tmp_path / "train" / "masks" / "1.png").write_bytes(b"no mask")
    assert count_classes(images, progress=False).tolist() == [COUNTS[0], [0, 0, 0], COUNTS[2]]


def test_factors_are_those_of_the_formula_by_hand():
    counts = np.array([[9, 1, 0], [9, 0, 0], [9, 0, 2], [9, 3, 0], [0, 0, 0], [9, 0, 0], [9, 0, 0], [9, 0, 0]])
    # Of 8 images 7 show the first class, 2 the second, 1 the third.
    assert repeat_factors(counts, 0.5) == pytest.approx([2**0.5, 1, 2, 2**0.5, 1, 1, 1, 1])
    assert repeat_factors(counts, 1.0) == pytest.approx([2, *[(8 / 7) ** 0.5], 8**0.5, 2, 1, *3 * [(8 / 7) ** 0.5]])
    assert repeat_factors(counts, 0.125).tolist() == repeat_factors(counts, 0.0).tolist() == [1.0] * 8


def test_an_epoch_has_each_row_as_often_as_its_factor_says_rounded_down_or_up():
    factors = np.array([1.0, 1, 1, 1, 2.5, 1, 1, 4, 1, 1])
    expected = 10 * factors / factors.sum()
    counts = np.array([np.bincount(drawn_rows(factors, 0, epoch), minlength=10) for epoch in range(2000)])
    assert (counts.sum(1) == 10).all()
    assert (np.floor(expected) <= counts).all()
    assert (counts <= np.ceil(expected)).all()
    assert counts.mean(0) == pytest.approx(expected, abs=0.05)


def test_equal_factors_give_every_row_once():
    for rows in (drawn_rows(np.full(7, 1.3), seed, 3) for seed in range(20)):
        assert sorted(rows) == list(range(7))


def test_rows_are_drawn_anew_in_each_epoch_and_alike_after_a_resume():
    factors = np.linspace(1, 3, 50)
    first, second = drawn_rows(factors, 0, 0), drawn_rows(factors, 0, 1)
    assert first.tolist() != second.tolist()
    assert first.tolist() == drawn_rows(factors, 0, 0).tolist()
    assert first.tolist() != drawn_rows(factors, 1, 0).tolist()


def augmented(images, factors=None):
    transform = TrainTransform(crop_size=(2, 2), scale_range=(1.0, 1.0), flip_probability=0.0)
    dataset = AugmentedDataset(images, transform, seed=5)
    dataset.repeat_factors = factors
    return dataset


def test_samples_are_those_of_the_drawn_rows(tmp_path):
    factors = np.array([1.0, 1.0, 6.0])
    dataset = augmented(folder(tmp_path, MASKS), factors)
    for epoch in (0, 4):
        dataset.set_epoch(epoch)
        names = [dataset[index]["image_ids"] for index in range(len(dataset))]
        assert names == [dataset.name_of(row) for row in drawn_rows(factors, 5, epoch)]
        assert names.count("2") >= 2


def test_without_factors_every_image_comes_once_in_its_place(tmp_path):
    dataset = augmented(folder(tmp_path, MASKS))
    assert [dataset[index]["image_ids"] for index in range(3)] == ["0", "1", "2"]
