"""What two processes must agree on, with every method. One pair of processes runs them all: starting costs most."""

import os
import socket

import pytest
import torch
from tiny_runs import trainer, weights

from hf_segkd.losses import LOSSES


def train_every_method(rank, port, folder):
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    for method in [*LOSSES, "cwd,kd"]:
        options = {"max_steps": 3, "per_device_train_batch_size": 2, "ddp_backend": "gloo"}
        options |= {"gradient_accumulation_steps": 2}
        run = trainer(folder / method, method=method, **options)
        assert run.args.world_size == 2
        # What each process holds by itself: after training the statistics of batch norms are shared.
        run._share_buffers = lambda run=run, method=method: save(run, folder / f"{method}-{rank}-alone.pt")
        run.train()
        del run._share_buffers
        run._share_buffers()
        save(run, folder / f"{method}-{rank}.pt")
    torch.distributed.destroy_process_group()


def save(run, path):
    torch.save(weights(run.accelerator.unwrap_model(run.model)), path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # a free one
    torch.multiprocessing.spawn(train_every_method, (port, folder), nprocs=2)
    return folder


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
