import pytest
import torch
from loss_cases import assert_same_with_gradient, doubles, draw
from torch.nn import functional as F

from hf_segkd.losses.cirkd_memory import CIRKDMemory, ClassQueues, key_divergence


@pytest.mark.parametrize(("pixels", "keys"), [(5, 7), (600, 2000)])  # one chunk, two chunks
def test_relations_to_keys_are_the_formula_and_have_its_gradient(pixels, keys):
    student, teacher, keys = doubles(4, (pixels, 3), (pixels, 3), (keys, 3))
    log_p, log_q = (torch.log_softmax(x @ keys.T / 0.2 / 1.5, dim=1) for x in (teacher, student))
    expected = (log_p.exp() * (log_p - log_q)).sum(1).mean() * 1.5**2
    assert_same_with_gradient(key_divergence(student, teacher, keys, 0.2, 1.5), expected, student)


def test_no_pixel_to_relate_costs_nothing_and_has_a_graph():
    student = torch.zeros(0, 3, requires_grad=True)
    value = key_divergence(student, torch.zeros(0, 3), torch.zeros(4, 3))
    value.backward()
    assert value == 0.0
    assert student.grad.shape == (0, 3)


def test_a_group_that_reaches_the_end_of_its_queue_takes_the_last_places():
    queues = ClassQueues(num_classes=2, length=5, channels=1)
    queues.push(torch.arange(1.0, 9.0)[:, None], [(1, 3), (0, 1), (1, 4)])
    assert queues.row.tolist() == [1, 0]
    assert queues.vectors[..., 0].tolist() == [[1, 5, 6, 7, 8], [4, 0, 0, 0, 0]]
    assert queues.filled.tolist() == [1, 5]
    assert queues.position.tolist() == [1, 0]
    queues.push(torch.arange(9.0, 11.0)[:, None], [(1, 2)])
    assert queues.vectors[0, :, 0].tolist() == [9, 10, 6, 7, 8]
    assert queues.filled.tolist() == [1, 5]
    assert queues.position.tolist() == [1, 2]


def test_keys_are_distinct_vectors_of_the_classes_seen_as_many_of_each_as_asked_or_there_are():
    memory = CIRKDMemory(num_classes=3, channels=1, pixel_queue=50, region_queue=2)
    memory.pixels.push(torch.arange(1.0, 54.0)[:, None], [(0, 50), (2, 3)])
    keys = memory.draw(10, 1)[0].flatten().tolist()
    assert len(set(keys)) == 13
    assert sum(key <= 50 for key in keys) == 10
    assert sorted(keys)[10:] == [51.0, 52.0, 53.0]


def test_full_queues_are_read_at_the_same_places_for_all_classes():
    memory = CIRKDMemory(num_classes=2, channels=1, pixel_queue=50, region_queue=2)
    memory.pixels.push(torch.arange(100.0)[:, None], [(0, 50), (1, 50)])
    first, second = memory.draw(10, 1)[0].flatten().view(2, 10)
    assert (second - first == 50.0).all()


def test_another_step_draws_other_keys_and_the_same_step_the_same():
    memory = CIRKDMemory(1, 1, pixel_queue=500, region_queue=2)
    memory.pixels.push(torch.arange(500.0)[:, None], [(0, 500)])
    keys = memory.draw(20, 1)[0]
    assert torch.equal(memory.draw(20, 1)[0], keys)
    memory.updates += 1
    assert not torch.equal(memory.draw(20, 1)[0], keys)


def vectors_of(queues, y):
    assert queues.row[y] >= 0
    return queues.vectors[queues.row[y]]


def one_hot_rows(labels, channels=5):
    """Unit vectors that tell the class of their pixel; of ignored pixels channel 4."""
    return F.one_hot(labels.masked_fill(labels < 0, 4).flatten(), channels).float()


def test_pixels_enter_the_queue_of_their_own_class_at_most_16_of_an_image():
    labels = torch.tensor([[[-1] * 6 + [0] * 30 + [2] * 4], [[2] * 20 + [3] * 20]])
    memory = CIRKDMemory(4, 5, pixel_queue=100, region_queue=10)
    memory.update(one_hot_rows(labels), labels)
    entered = {0: 16, 1: 0, 2: 20, 3: 16}
    assert memory.pixels.position.tolist() == list(entered.values())
    assert memory.regions.position.tolist() == [1, 0, 2, 1]
    for y, number in entered.items():
        if number:
            assert (vectors_of(memory.pixels, y)[:number].argmax(1) == y).all()
            assert (vectors_of(memory.regions, y)[: memory.regions.position[y]].argmax(1) == y).all()


def test_no_more_pixels_enter_a_queue_than_it_holds():
    memory = CIRKDMemory(1, 5, pixel_queue=7, region_queue=None)
    memory.update(one_hot_rows(labels := torch.zeros(1, 4, 5, dtype=torch.int64)), labels)
    assert memory.pixels.filled.tolist() == [7]


def test_the_mean_of_a_class_in_an_image_enters_with_length_one():
    (rows,) = draw(5, (12, 3))
    labels = torch.tensor([[[0, 0, 1, -1, 0, 1]], [[1, 1, 1, 1, -1, -1]]])
    memory = CIRKDMemory(2, 3, pixel_queue=100, region_queue=10)
    memory.update(rows, labels)
    means = [rows[[0, 1, 4]].mean(0)], [rows[[2, 5]].mean(0), rows[6:10].mean(0)]
    for y, expected in enumerate(means):
        actual = vectors_of(memory.regions, y)[: len(expected)]
        torch.testing.assert_close(actual, F.normalize(torch.stack(expected), dim=1))
    assert memory.regions.filled.tolist() == [1, 2]


def test_only_classes_that_were_seen_take_memory():
    memory = CIRKDMemory(150, 5, pixel_queue=100, region_queue=10)
    assert memory.pixels.vectors.shape == (0, 100, 5)
    for classes in ([149, 3], [3, 20], [20]):
        labels = torch.tensor(classes).repeat_interleave(6).view(1, 1, -1)
        memory.update(one_hot_rows(labels % 4), labels)
    assert memory.pixels.vectors.shape == (3, 100, 5)
    assert memory.regions.vectors.shape == (3, 10, 5)
    assert {y: row for y, row in enumerate(memory.pixels.row.tolist()) if row >= 0} == {3: 0, 149: 1, 20: 2}
    assert memory.pixels.filled[[3, 20, 149]].tolist() == [12, 12, 6]
    for y in (3, 20, 149):
        assert (vectors_of(memory.pixels, y)[: memory.pixels.filled[y]].argmax(1) == y % 4).all()


def test_queues_of_another_length_are_not_loaded():
    with pytest.raises(RuntimeError, match="size mismatch for vectors"):
        ClassQueues(2, 5, 1).load_state_dict(ClassQueues(2, 6, 1).state_dict())
