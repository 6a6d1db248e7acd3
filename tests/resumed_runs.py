"""Resumes runs, and compares their checkpoints file by file."""

import torch
from tiny_runs import network, trainer

WITH_PATHS = {"training_args.json"}


def read(file):
    return torch.load(file, weights_only=False) if file.suffix in (".pt", ".pth") else file.read_bytes()


def equal(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(first == second) if not hasattr(first, "all") else bool((first == second).all())


def differing(first, second):
    """Names of the files that differ: student, loss, averages, optimizer, schedule, generators, logs."""
    names = {file.name for folder in (first, second) for file in folder.iterdir()} - WITH_PATHS
    return [name for name in sorted(names) if not equal(read(first / name), read(second / name))]


def resume(folder, checkpoint, **options):
    run = trainer(folder, student=network(seed=9), **options)
    run.train(resume_from_checkpoint=checkpoint if checkpoint is True else str(checkpoint))
    return run
