"""`scripts/loss_bench.py`, by which `benchmark_losses.py --against` compares versions."""

import importlib.util
from pathlib import Path

import torch

PLACES = ["backbone", "encoder", "decoder"]
path = Path(__file__).parents[1] / "scripts" / "loss_bench.py"
spec = importlib.util.spec_from_file_location("loss_bench", path)
loss_bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loss_bench)


def test_two_benches_that_start_from_the_same_file_have_the_same_values_and_gradients(tmp_path):
    first, second = (loss_bench.Bench("attnfd", PLACES, 4, 3) for _ in range(2))
    with torch.no_grad():
        for tensor in (*second.student.values(), *second.loss.parameters()):
            tensor.mul_(2.0)
    first.start(str(tmp_path / "start.pt"), write=True)
    second.start(str(tmp_path / "start.pt"), write=False)
    results, others = first.results(), second.results()
    parameters = [name for name, _ in first.loss.named_parameters()]
    assert list(results) == list(others) == ["value", *PLACES, *parameters]
    assert all(torch.equal(results[name], others[name]) for name in results)


def test_products_are_the_convolutions_and_matrix_products_of_a_step():
    attnfd, kd = loss_bench.Bench("attnfd", PLACES, 4, 3), loss_bench.Bench("kd", ["logits"], 4, 3)
    counts = []
    for bench in (attnfd, kd):
        with loss_bench.Products() as products:
            bench.step()
        counts.append({})
        for key, (_, number) in products.calls.items():
            name = key.split(".")[1]
            counts[-1][name] = counts[-1].get(name, 0) + number
    # At each place a spatial gate and a connector; an MLP of two layers, used twice, with three products each.
    assert counts == [{"convolution": 6, "convolution_backward": 6, "addmm": 12, "mm": 24}, {}]
    assert kd.products(1) == 0.0
