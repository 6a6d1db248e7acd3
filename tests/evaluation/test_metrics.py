import json
import math
import pickle
import socket

import evaluate
import numpy as np
import pytest
import torch

from hf_segkd.evaluation.metrics import MeanIoU, _count_on_device, confusion_matrix, scores_from_confusion_matrix

# Printed by the code of AttnFD for these two maps.
GOLDEN_LABELS = torch.tensor(
    [
        [255, 255, 255, 3, 0, 1, 2, 3],
        [3, 1, 3, 1, 3, 1, 3, 1],
        [2, 1, 0, 3, 2, 1, 0, 3],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [0, 1, 2, 3, 0, 1, 2, 3],
        [3, 1, 3, 1, 3, 1, 3, 255],
    ]
)
GOLDEN_PREDICTIONS = torch.tensor(
    [
        [1, 3, 2, 3, 0, 3, 2, 1],
        [3, 1, 1, 0, 3, 2, 1, 1],
        [0, 3, 0, 1, 0, 1, 2, 1],
        [1, 2, 1, 1, 3, 2, 1, 0],
        [0, 1, 2, 1, 0, 3, 2, 3],
        [3, 2, 3, 0, 3, 1, 1, 0],
    ]
)
GOLDEN_MATRIX = [[4, 0, 1, 0, 0], [3, 9, 4, 4, 0], [2, 0, 3, 0, 0], [0, 7, 0, 7, 0], [0, 0, 0, 0, 0]]


def random_maps(num_labels=5, size=(6, 20, 30), seed=0, ignored=0.1):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_labels, size)
    labels[rng.random(size) < ignored] = 255
    return rng.integers(0, num_labels, size), labels


def brute_force(predictions, references, num_labels):
    """Scores pixel by pixel from the definitions, as fractions of sets of pixel positions."""
    pixels = [(int(p), int(r)) for p, r in zip(predictions.ravel(), references.ravel(), strict=True) if r != 255]
    iou, accuracy = [], []
    for c in range(num_labels):
        both = sum(p == c and r == c for p, r in pixels)
        either = sum(p == c or r == c for p, r in pixels)
        labelled = sum(r == c for _, r in pixels)
        iou.append(both / either if either else math.nan)
        accuracy.append(both / labelled if labelled else math.nan)
    right = sum(p == r for p, r in pixels) / len(pixels)
    return iou, accuracy, right


def test_golden_numbers_of_the_attnfd_code():
    matrix = confusion_matrix(GOLDEN_PREDICTIONS, GOLDEN_LABELS, 5)
    assert matrix.tolist() == GOLDEN_MATRIX
    assert matrix.dtype == torch.int64
    scores = scores_from_confusion_matrix(matrix)
    assert scores["overall_accuracy"] == pytest.approx(0.522727272727, abs=1e-12)
    assert scores["mean_accuracy"] == pytest.approx(0.5875, abs=1e-12)
    assert scores["mean_iou"] == pytest.approx(0.355555555556, abs=1e-12)


def test_a_class_absent_from_both_is_left_out_and_one_predicted_only_counts_as_zero():
    matrix = torch.tensor(GOLDEN_MATRIX)
    absent = scores_from_confusion_matrix(matrix)
    assert math.isnan(absent["per_category_iou"][4])
    assert absent["num_classes_counted"] == 4
    matrix[0, 4] = 1
    predicted = scores_from_confusion_matrix(matrix)
    assert predicted["per_category_iou"][4] == 0
    assert math.isnan(predicted["per_category_accuracy"][4])
    assert predicted["num_classes_counted"] == 5


@pytest.mark.parametrize("ignored", [0.0, 0.1, 0.9])
def test_scores_equal_the_definitions_counted_pixel_by_pixel(ignored):
    predictions, references = random_maps(ignored=ignored)
    references[references == 3] = 1  # 3 is predicted only
    predictions[predictions == 4] = 0
    references[references == 4] = 0  # 4 is in neither
    iou, accuracy, right = brute_force(predictions, references, 5)
    metric = MeanIoU(5)
    metric.update(predictions, references)
    scores = metric.compute()
    assert scores["per_category_iou"] == pytest.approx(iou, nan_ok=True, abs=1e-12)
    assert scores["per_category_accuracy"] == pytest.approx(accuracy, nan_ok=True, abs=1e-12)
    assert scores["mean_iou"] == pytest.approx(np.nanmean(iou), abs=1e-12)
    assert scores["mean_accuracy"] == pytest.approx(np.nanmean(accuracy), abs=1e-12)
    assert scores["overall_accuracy"] == pytest.approx(right, abs=1e-12)
    assert scores["num_classes_counted"] == 4


def test_all_ways_of_adding_count_the_same():
    predictions, references = random_maps()
    expected = MeanIoU(5)
    expected.update(predictions, references)
    expected = expected.compute()

    one_by_one, batches, pieces, at_once = (MeanIoU(5) for _ in range(4))
    for prediction, reference in zip(predictions, references, strict=True):
        one_by_one.add(prediction=prediction, reference=torch.from_numpy(reference))
    batches.add_batch(predictions=torch.from_numpy(predictions), references=references)
    pieces.update(
        [torch.from_numpy(predictions[0]).to(torch.uint8), predictions[1:, :7], predictions[1:, 7:]],
        [references[0].astype(np.uint8), references[1:, :7], references[1:, 7:]],
    )
    results = [m.compute() for m in (one_by_one, batches, pieces)]
    results.append(at_once.compute(predictions=predictions, references=references))
    assert all(result == expected for result in results)


def test_compute_starts_afresh():
    predictions, references = random_maps()
    metric = MeanIoU(5)
    first = metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=predictions, references=references) == first
    empty = metric.compute()
    assert math.isnan(empty["mean_iou"])
    assert empty["num_classes_counted"] == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_every_integer_type_counts_the_same_with_many_classes(dtype):
    predictions, references = (torch.from_numpy(maps) for maps in random_maps(150, (2, 90, 90)))
    expected = torch.zeros(150, 150, dtype=torch.int64)
    valid = references != 255
    expected.index_put_((references[valid], predictions[valid]), torch.tensor(1), accumulate=True)
    assert torch.equal(confusion_matrix(predictions.to(dtype), references.to(dtype), 150), expected)


@pytest.mark.parametrize(
    ("num_labels", "ignore_index"), [(5, 255), (5, 3), (5, -100), (5, 5), (300, -1), (300, 7), (300, 300)]
)
@pytest.mark.parametrize("dtypes", [(torch.int64, torch.int64), (torch.int64, torch.int16), (torch.int32, torch.int64)])
def test_any_size_type_and_ignore_index_count_as_pixel_by_pixel(num_labels, ignore_index, dtypes):
    generator = torch.Generator().manual_seed(0)
    references, predictions = torch.randint(
        num_labels, (2, 3, 200, 211), generator=generator
    )  # more than are taken at once
    references[torch.rand(references.shape, generator=generator) < 0.1] = ignore_index
    valid = references != ignore_index
    expected = torch.zeros(num_labels, num_labels, dtype=torch.int64)
    expected.index_put_((references[valid], predictions[valid]), torch.tensor(1), accumulate=True)
    predictions, references = predictions.to(dtypes[0]), references.to(dtypes[1])
    assert torch.equal(confusion_matrix(predictions, references, num_labels, ignore_index), expected)
    on_device = _count_on_device(predictions.flatten(), references.flatten(), num_labels, ignore_index)
    assert torch.equal(on_device, expected)


@pytest.mark.parametrize("count", [confusion_matrix, _count_on_device])
@pytest.mark.parametrize("num_labels", [5, 300])
@pytest.mark.parametrize("ignore_index", [-100, 3, 65535])
@pytest.mark.parametrize("bad", [-1, -(2**32), 2**32 + 1, 2**62, 400])
def test_an_id_out_of_range_raises_wherever_its_low_bits_are_a_class(count, num_labels, ignore_index, bad):
    good = torch.zeros(2**16 + 5, dtype=torch.int64)
    wrong = good.clone()
    wrong[-2] = bad
    with pytest.raises(ValueError, match=f"references hold class id {bad}, need 0..{num_labels - 1}"):
        count(good, wrong, num_labels, ignore_index)
    with pytest.raises(ValueError, match=f"predictions hold class id {bad}, need 0..{num_labels - 1}"):
        count(wrong, good, num_labels, ignore_index)


def test_arguments_are_left_as_they_were():
    predictions, references = (torch.from_numpy(maps).int() for maps in random_maps())
    copies = predictions.clone(), references.clone()
    confusion_matrix(predictions, references, 5)
    assert torch.equal(predictions, copies[0])
    assert torch.equal(references, copies[1])


def test_another_ignore_index_and_an_all_ignored_map_work():
    assert confusion_matrix(torch.tensor([0, 1]), torch.tensor([-1, 1]), 2, ignore_index=-1).tolist() == [
        [0, 0],
        [0, 1],
    ]
    assert confusion_matrix(torch.zeros(4, 4).long(), torch.full((4, 4), 255), 3).sum() == 0
    assert confusion_matrix(torch.zeros(0).long(), torch.zeros(0).long(), 3).sum() == 0
    with pytest.raises(ValueError, match="references hold class id 255"):
        confusion_matrix(torch.tensor([0, 1]), torch.tensor([255, 1]), 2, ignore_index=-1)
    # An ignore index that is also a class id: that class is not counted as truth.
    assert confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 1]), 2, ignore_index=0).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("bad", [-1, 5, 255, 300])
def test_predictions_out_of_range_raise_even_on_ignored_pixels(bad):
    predictions = torch.zeros(4, 4).long()
    predictions[2, 2] = bad
    with pytest.raises(ValueError, match=rf"predictions hold class id {bad}, need 0..4"):
        confusion_matrix(predictions, torch.full((4, 4), 255), 5)


@pytest.mark.parametrize("bad", [-1, 5, 254])
def test_labels_out_of_range_raise(bad):
    references = torch.zeros(4, 4).long()
    references[2, 2] = bad
    with pytest.raises(ValueError, match=rf"references hold class id {bad}, need 0..4"):
        confusion_matrix(torch.zeros(4, 4).long(), references, 5)


@pytest.mark.parametrize("num_labels", [256, 847])
def test_more_classes_than_a_byte_holds_are_counted(num_labels):
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, num_labels, (2, 40, 50), dtype=np.uint16)
    references[0], predictions[1, :2] = 65535, references[1, :2]  # a line without a class, some right
    matrix = confusion_matrix(torch.as_tensor(predictions), torch.as_tensor(references), num_labels, 65535)
    expected = np.zeros((num_labels, num_labels), dtype=int)
    np.add.at(expected, (references[1:].ravel(), predictions[1:].ravel()), 1)
    assert np.array_equal(matrix.numpy(), expected)
    metric = MeanIoU(num_labels, ignore_index=65535)
    metric.update(predictions, references)
    assert torch.equal(metric.confusion_matrix, matrix)
    references[3, 3] = num_labels
    with pytest.raises(ValueError, match=rf"references hold class id {num_labels}, need 0..{num_labels - 1}"):
        metric.update(predictions, references)
    with pytest.raises(ValueError, match=f"ignore_index 255 is one of {num_labels} classes"):
        MeanIoU(num_labels).update(predictions, references)


def test_shapes_types_and_counts_that_do_not_fit_raise():
    labels = torch.zeros(4, 4).long()
    with pytest.raises(ValueError, match="one shape"):
        confusion_matrix(labels[:2], labels, 5)
    with pytest.raises(ValueError, match="integer class ids"):
        confusion_matrix(labels.float(), labels, 5)
    with pytest.raises(ValueError, match=r"num_labels must be 1..65535, got 65536"):
        confusion_matrix(labels, labels, 65536)
    with pytest.raises(ValueError, match="Got 1 predictions for 2 references"):
        MeanIoU(5).update([labels], [labels, labels])
    with pytest.raises(ValueError, match="both predictions and references"):
        MeanIoU(5).compute(predictions=labels)


def test_a_failed_update_counts_nothing():
    metric = MeanIoU(2)
    good = torch.zeros(4, 4).long()
    with pytest.raises(ValueError, match=r"need 0\.\.1"):
        metric.update([good, good + 2], [good, good])
    assert metric.compute()["num_classes_counted"] == 0


def test_it_is_an_evaluate_metric_that_needs_neither_network_nor_cache(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    metric = MeanIoU(5)
    assert isinstance(metric, evaluate.Metric)
    assert "confusion matrix" in metric.description
    predictions, references = random_maps()
    assert metric.compute(predictions=predictions, references=references)["num_classes_counted"] == 5
    assert not (tmp_path / "cache").exists()


def test_memory_is_the_matrix_whatever_was_added():
    predictions, references = random_maps()
    metric = MeanIoU(5)
    sizes = set()
    for _ in range(3):
        metric.update(predictions, references)
        sizes.add(len(pickle.dumps(metric.confusion_matrix)))
        assert metric.writer is None  # the base class's store of predictions
    assert len(sizes) == 1


def test_scores_can_be_written_as_json():
    scores = scores_from_confusion_matrix(torch.eye(3).long())
    assert json.loads(json.dumps(scores))["per_category_iou"] == [1.0, 1.0, 1.0]
