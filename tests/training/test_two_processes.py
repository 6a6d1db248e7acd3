"""What two processes must agree on, with every method. One pair of processes runs them all: starting costs most."""

import pytest
import torch
from several_processes import GLOO, spawn
from test_global_batch import UNCOUPLED, assert_same_training, train
from tiny_runs import network, same, trainer, weights
from transformers import AutoModelForSemanticSegmentation

from hf_segkd.losses import LOSSES

# Beside those without any coupling: what these take from a batch they take from the batches of all processes.
SHARED = {method: {} for method in ("sp", "fakd_pd", "fakd_cwd")}
ALIKE = {**UNCOUPLED, **SHARED}
PREFLIGHT = {"preflight_images": 5, "allow_weak_teacher": True}


def jobs_of_two(rank, folder):
    train_every_method(rank, folder)
    for method, kwargs in ALIKE.items():
        result = train(folder, method, 3, 1, kwargs, **GLOO)
        torch.save(result, folder / f"{method}-{rank}-alike.pt")
    train_and_evaluate(rank, folder)


def train_every_method(rank, folder):
    for method in [*LOSSES, "cwd,kd"]:
        options = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **GLOO}
        run = trainer(folder / method, method=method, **options)
        assert run.args.world_size == 2
        # What each process holds by itself: after training the statistics of batch norms are shared.
        run._share_buffers = lambda run=run, method=method: save(run, folder / f"{method}-{rank}-alone.pt")
        run.train()
        del run._share_buffers
        run._share_buffers()
        save(run, folder / f"{method}-{rank}.pt")


def train_and_evaluate(rank, folder):
    """7 images are 4 batches of at most 2: the processes get 4 images each, one of them twice."""
    options = {"ema_decay": 0.5, "per_device_eval_batch_size": 2, **PREFLIGHT, **GLOO}
    run = trainer(folder / "averaged", method="kd", **options)
    run.train()
    torch.save(run.state.log_history[0], folder / f"preflight-{rank}.pt")
    run.evaluate()
    torch.save(run.confusion_matrix, folder / f"matrix-{rank}.pt")
    run.save_model()
    save(run, folder / f"averaged-{rank}.pt")


def evaluate(rank, folder):
    run = trainer(folder, student=network(seed=5), per_device_eval_batch_size=2, **GLOO)
    run.evaluate()
    torch.save(run.confusion_matrix, folder / f"matrix-{rank}.pt")


def save(run, path):
    torch.save(weights(run.accelerator.unwrap_model(run.model)), path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return spawn(2, tmp_path_factory.mktemp("two"), jobs_of_two)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*LOSSES, "cwd,kd"])
def test_both_processes_end_with_the_same_weights_and_buffers(method, trained):
    first, second = (torch.load(trained / f"{method}-{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert all(value.isfinite().all() for value in first.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", [*LOSSES, "cwd,kd"])
def test_only_statistics_of_batch_norms_need_sharing(method, trained):
    first, second = (torch.load(trained / f"{method}-{rank}-alone.pt") for rank in (0, 1))
    different = {name.rsplit(".")[-1] for name in first if not torch.equal(first[name], second[name])}
    assert different == {"running_mean", "running_var"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ALIKE)
def test_two_processes_train_as_one_with_the_same_images(method, trained, tmp_path):
    one = train(tmp_path, method, 6, 1, ALIKE[method])
    for rank in (0, 1):
        assert_same_training(one, torch.load(trained / f"{method}-{rank}-alike.pt"))


@pytest.mark.slow
def test_both_processes_have_the_same_average_and_score_what_is_saved(trained):
    first, second = (torch.load(trained / f"averaged-{rank}.pt") for rank in (0, 1))
    assert same(first, second)
    saved = AutoModelForSemanticSegmentation.from_pretrained(trained / "averaged")
    assert same(weights(saved), {name.removeprefix("student."): value for name, value in first.items()})
    run = trainer(trained / "again", student=saved)
    run.evaluate()
    assert all(run.confusion_matrix.equal(torch.load(trained / f"matrix-{rank}.pt")) for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_images_shared_out_unevenly_give_the_counts_of_one_process(processes, tmp_path):
    spawn(processes, tmp_path, evaluate)
    run = trainer(tmp_path, student=network(seed=5))
    run.evaluate()
    for rank in range(processes):
        assert torch.load(tmp_path / f"matrix-{rank}.pt").equal(run.confusion_matrix)


@pytest.mark.slow
def test_the_teacher_is_tried_on_the_images_that_one_process_takes(trained, tmp_path):
    first, second = (torch.load(trained / f"preflight-{rank}.pt") for rank in (0, 1))
    alone = trainer(tmp_path, method="kd", max_steps=1, **PREFLIGHT)
    alone.train()
    for name in ("preflight_teacher_mean_iou", "preflight_student_mean_iou"):
        assert first[name] == second[name] == pytest.approx(alone.state.log_history[0][name], abs=1e-3)
