import pytest
import torch
from tiny_runs import same, trainer, weights


@pytest.fixture
def _deterministic_only_here():
    yield
    torch.use_deterministic_algorithms(False)


def student_of(folder, **overrides):
    run = trainer(folder, method="attnfd", max_steps=4, **overrides)
    run.train()
    return weights(run.student)


def test_runs_of_one_seed_end_alike_bit_for_bit_with_any_number_of_workers_and_other_seeds_do_not(tmp_path):
    expected = student_of(tmp_path, seed=7)
    assert same(student_of(tmp_path, seed=7), expected)
    assert same(student_of(tmp_path, seed=7, dataloader_num_workers=2), expected)
    assert not same(student_of(tmp_path, seed=8), expected)


@pytest.mark.usefixtures("_deterministic_only_here")
def test_full_determinism_runs_and_gives_the_same_student(tmp_path):
    expected = student_of(tmp_path)
    assert same(student_of(tmp_path, full_determinism=True), expected)
    assert torch.are_deterministic_algorithms_enabled()
