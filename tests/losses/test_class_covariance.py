import threading

import fakd_case as case
import pytest
import torch
from several_processes import spawn
from torch import distributed as dist

from hf_segkd.losses.class_covariance import ClassCovariance, sort_by_class


def double(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def batches(count, channels=3, seed=0):
    """Correlated rows with a mean per class, and labels 0 to 3 or 255; class 3 appears in the last batch alone."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for i in range(count):
        classes = 4 if i == count - 1 else 3
        labels = torch.randint(0, classes, (40,), generator=generator)
        rows = torch.randn(40, channels, generator=generator, dtype=torch.float64)
        rows[:, 1] += rows[:, 0] + labels
        labels[::9] = 255
        result.append((rows, labels))
    return result


def pooled(parts, kind):
    """Count, mean and population covariance of all pixels at once, class by class."""
    rows, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    groups = [rows[labels == y] for y in range(4)]
    covariances = [(g - g.mean(0)).T @ (g - g.mean(0)) / len(g) for g in groups]
    if kind == "diagonal":
        covariances = [c.diagonal() for c in covariances]
    return torch.tensor([len(g) for g in groups]), torch.stack([g.mean(0) for g in groups]), torch.stack(covariances)


def assert_state(statistics, expected, tolerance=1e-12):
    count, mean, covariance = expected
    assert statistics.count.tolist() == count.tolist()
    torch.testing.assert_close(statistics.mean, mean, rtol=0.0, atol=tolerance)
    torch.testing.assert_close(statistics.covariance, covariance, rtol=0.0, atol=tolerance)


def test_three_updates_give_the_reference_numbers_after_each():
    statistics = ClassCovariance(4, 3).double()
    trace = zip(case.BATCHES, case.COUNTS, case.MEANS, case.COVARIANCES, strict=True)
    for (rows, labels), count, mean, covariance in trace:
        statistics.update(double(rows), torch.tensor(labels))
        assert_state(statistics, (torch.tensor(count), double(mean), double(covariance)))


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_running_statistics_are_the_pooled_ones(kind):
    statistics = ClassCovariance(4, 3, kind).double()
    parts = batches(5)
    for rows, labels in parts:
        statistics.update(rows, labels)
    assert_state(statistics, pooled(parts, kind))


def test_classes_that_are_absent_keep_their_bits_and_unseen_ones_stay_zero():
    statistics = ClassCovariance(4, 3)
    (rows, labels), _ = batches(2)
    statistics.update(rows, labels)
    before = statistics.covariance.clone()
    statistics.update(rows[labels == 1], labels[labels == 1])
    assert torch.equal(statistics.covariance[[0, 2, 3]], before[[0, 2, 3]])
    assert statistics.covariance[3].abs().max() == 0.0
    assert statistics.count[3] == 0


def test_one_pixel_has_no_covariance_and_ignored_pixels_change_nothing():
    statistics = ClassCovariance(4, 3)
    statistics.update(torch.tensor([[5.0, -2.0, 1.0]]), torch.tensor([2]))
    assert statistics.covariance.abs().max() == 0.0
    state = {name: value.clone() for name, value in statistics.state_dict().items()}
    statistics.update(torch.full((7, 3), torch.inf), torch.tensor([255, -1, 4, 255, 255, 255, 255]))
    assert all(torch.equal(value, state[name]) for name, value in statistics.state_dict().items())


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_fp32_stays_exact_far_from_the_origin(kind):
    generator = torch.Generator().manual_seed(0)
    statistics = ClassCovariance(1, 4, kind)
    parts = [torch.randn(4000, 4, generator=generator) * 0.7 + 300.0 for _ in range(5)]
    for rows in parts:
        statistics.update(rows, torch.zeros(4000, dtype=torch.int64))
    exact = torch.cat(parts).double().T.cov(correction=0)
    exact = exact if kind == "full" else exact.diagonal()
    torch.testing.assert_close(statistics.covariance[0].double(), exact, rtol=0.0, atol=1e-5)


def test_sorting_groups_the_pixels_and_leaves_out_the_rest():
    order, count = sort_by_class(torch.tensor([2, 255, 0, 2, -1, 0, 4]), 4)
    assert order[:4].tolist() == [2, 5, 0, 3]
    assert count.tolist() == [2, 0, 2, 0]


class Ranks:
    """Two threads in place of two processes: `all_reduce` waits for both and sums."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=20)
        self.tensors = {}

    def all_reduce(self, tensor):
        self.tensors[threading.get_ident()] = tensor.clone()
        self.barrier.wait()
        total = sum(self.tensors.values())
        self.barrier.wait()
        tensor.copy_(total)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_two_ranks_hold_the_statistics_of_all_pixels(kind, monkeypatch):
    ranks = Ranks()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", ranks.all_reduce)
    parts = batches(6)
    # The first rank meets class 3 never, and gets a batch of ignored pixels at last.
    ignored = (torch.zeros(5, 3, dtype=torch.float64), torch.full((5,), 255))
    shares = [[parts[0], parts[1], ignored], [parts[2], parts[3], parts[5]]]
    statistics = [ClassCovariance(4, 3, kind).double() for _ in shares]

    def run(rank):
        for rows, labels in shares[rank]:
            statistics[rank].update(rows, labels)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for state in statistics:
        assert_state(state, pooled(shares[0] + shares[1], kind))


def job(rank, folder):
    dist.init_process_group("gloo")
    statistics = ClassCovariance(4, 3).double()
    for rows, labels in batches(6)[rank::2]:
        statistics.update(rows, labels)
    torch.save(statistics.state_dict(), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_hold_the_statistics_of_all_pixels(tmp_path):
    spawn(2, tmp_path, job)
    for rank in (0, 1):
        statistics = ClassCovariance(4, 3).double()
        statistics.load_state_dict(torch.load(tmp_path / f"{rank}.pt"))
        assert_state(statistics, pooled(batches(6), "full"))
