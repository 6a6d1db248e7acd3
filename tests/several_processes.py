"""Starts the processes of a run on several devices, here on the CPU."""

import os
import socket
import time

import torch

GLOO = {"ddp_backend": "gloo"}


def start(rank, world_size, port, folder, job):
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    job(rank, folder)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def spawn(world_size, folder, job, seconds=600):
    """Run `job(rank, folder)` in new processes, with what torch.distributed needs to know in their environment.

    Those that still run after the given time are killed, and the test fails.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # a free one
    context = torch.multiprocessing.spawn(start, (world_size, port, folder, job), nprocs=world_size, join=False)
    end = time.monotonic() + seconds
    while not context.join(timeout=5) and time.monotonic() < end:
        pass
    hanging = [process for process in context.processes if process.is_alive()]
    for process in hanging:
        process.kill()
    assert hanging == []
    return folder
