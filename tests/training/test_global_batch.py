"""A step depends on its images alone, not on how they are divided among accumulated batches and processes."""

import pytest
import torch
from tiny_runs import network, uncoupled_trainer, weights, without_batch_coupling

from hf_segkd.losses import LOSSES

# Methods that compare each image, or pixel, with the teacher alone.
UNCOUPLED = {
    **{method: {} for method, loss in LOSSES.items() if not loss.couples_images},
    **{"none": {}, "kd,cwd,lad": {}},
    "skds": {"adversarial_weight": 0},
}


def train(folder, method, batch_size, accumulation=1, method_kwargs=None, **options):
    """Three steps; the gradients of the first, and the weights before and after."""
    run = uncoupled_trainer(
        folder,
        method=method,
        method_kwargs=method_kwargs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **options,
    )
    start, gradients = weights(run.model), {}
    step = run.create_optimizer().step

    def record_gradients(*args, **kwargs):
        for name, parameter in run.model.named_parameters():
            if parameter.grad is not None:
                gradients.setdefault(name, parameter.grad.clone())
        return step(*args, **kwargs)

    run.optimizer.step = record_gradients
    run.train()
    return {"start": start, "gradients": gradients, "end": weights(run.model), "log": run.state.log_history[:-1]}


def assert_same_training(first, second):
    assert first["start"].keys() == second["start"].keys()
    assert first["gradients"].keys() == second["gradients"].keys() != set()
    for name, gradient in first["gradients"].items():
        torch.testing.assert_close(second["gradients"][name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max())
    for name, value in first["end"].items():
        moved = (value - first["start"][name]).abs().max()
        assert (value - second["end"][name]).abs().max() <= 1e-3 * moved + 1e-7, name
    for one, other in zip(first["log"], second["log"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("method", UNCOUPLED)
def test_accumulating_two_batches_is_one_batch_of_twice_the_size(method, tmp_path):
    whole, halves = (train(tmp_path, method, *sizes, UNCOUPLED[method]) for sizes in ((6, 1), (3, 2)))
    assert_same_training(whole, halves)


def test_the_halves_are_labelled_unevenly(tmp_path):
    run = uncoupled_trainer(tmp_path, per_device_train_batch_size=3)
    counts = [(batch["labels"] != 255).sum().item() for batch in run.get_train_dataloader()]
    assert len(set(counts)) == len(counts)
    assert max(counts) > 1.1 * min(counts)


def test_an_image_without_labels_counts_nothing_among_labelled_ones(tmp_path):
    class Half(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            images = torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(index))
            return {"pixel_values": images, "labels": torch.full((32, 48), 255 if index % 3 else index // 3)}

    student, images = without_batch_coupling(network()), Half()
    entropies = []  # of each labelled pixel, in float64: the images 0, 3 and 6 have the classes 0, 1 and 2
    with torch.no_grad():
        for label, index in enumerate((0, 3, 6)):
            scores = student(pixel_values=images[index]["pixel_values"][None]).logits[0].double().exp()  # (k, h, w)
            entropies.append(-(scores[label] / scores.sum(0)).log())
    expected = torch.stack(entropies).mean().item()
    runs = []
    for batch_size, accumulation in ((8, 1), (1, 8)):
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        run = uncoupled_trainer(tmp_path, max_steps=1, **options)
        run.train_dataset = images
        run.train()
        runs.append((run.state.log_history[0]["loss"], run.student.classifier.weight))
    assert [loss for loss, _ in runs] == pytest.approx([expected] * 2, rel=1e-5)
    torch.testing.assert_close(*(weight for _, weight in runs), rtol=1e-4, atol=1e-6)


def test_twice_the_weight_makes_up_for_the_sum_of_ofd(tmp_path):
    whole = train(tmp_path, "ofd", 6, 1, {"weight": 1e-3})
    halves = train(tmp_path, "ofd", 3, 2, {"weight": 2e-3})
    for name in ("raw_ofd", "loss_ofd"):
        for entry in halves["log"]:
            entry[name] *= 2 if name == "raw_ofd" else 1
    assert_same_training(whole, halves)
