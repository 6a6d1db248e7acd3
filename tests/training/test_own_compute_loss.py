"""A subclass with a `compute_loss` of its own, as people write it for `Trainer`."""

import pytest
import torch
from network_cases import tiny_network
from several_processes import GLOO, spawn
from tiny_runs import arguments, network, processor, same, scenes, trainer, weights
from torch.nn import functional as F

from hf_segkd.training import trainer as trainer_module
from hf_segkd.training.trainer import DistillationTrainer

WEIGHTS = torch.tensor([1.0, 5.0, 0.2, 3.0])


class FromLogits(DistillationTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = F.cross_entropy(outputs["logits"], labels, weight=WEIGHTS, ignore_index=255)
        return (loss, outputs) if return_outputs else loss


class FromOutputs(DistillationTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        assert outputs.logits.shape == (4, 4, 32, 48)
        loss = outputs.loss + 0 * outputs.get("logits").mean()
        return (loss, outputs) if return_outputs else loss


class WithATermOfItsOwn(DistillationTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss + 0.1 * outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


def run_of(kind, folder, student=None, teacher=None, **options):
    return kind(
        network() if student is None else student,
        arguments(folder, **options),
        teacher=teacher,
        train_dataset=scenes(),
        eval_dataset=scenes("val", 3),
        processing_class=processor(),
    )


def test_a_loss_of_the_logits_trains_as_class_weights_do(tmp_path):
    own = run_of(FromLogits, tmp_path)
    own.train()
    ours = trainer(tmp_path, class_weights=WEIGHTS.tolist())
    ours.train()
    for name, value in weights(own.student).items():
        torch.testing.assert_close(value, weights(ours.student)[name], rtol=1e-4, atol=1e-6)
    for one, other in zip(own.state.log_history[:-1], ours.state.log_history[:-1], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert not any(key.startswith("raw_") for key in one)
    assert own.evaluate().keys() == ours.evaluate().keys()


def test_the_loss_and_the_logits_of_the_model_are_the_students(tmp_path):
    own = run_of(FromOutputs, tmp_path)
    own.train()
    ours = trainer(tmp_path)
    ours.train()
    for name, value in weights(own.student).items():
        torch.testing.assert_close(value, weights(ours.student)[name], rtol=1e-4, atol=1e-6)


def test_a_term_can_be_added_to_those_of_a_method(tmp_path):
    run = run_of(WithATermOfItsOwn, tmp_path, teacher=network(width=12, seed=1), method="kd", max_steps=1)
    run.train()
    log = run.state.log_history[0]
    assert log["loss"] > 1.01 * (log["loss_ce"] + log["loss_kd"])
    without = trainer(tmp_path, method="kd", max_steps=1)
    without.train()
    assert without.state.log_history[0]["raw_kd"] == log["raw_kd"]


def test_accumulated_batches_are_averaged(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 3}
    run = run_of(FromLogits, tmp_path, **options)
    losses, step = [], run.training_step
    run.training_step = lambda *args, **kwargs: losses.append(step(*args, **kwargs)) or losses[-1]
    run.train()
    assert len(losses) == 6
    assert run.state.log_history[0]["loss"] == pytest.approx(float(sum(losses)) / 3, rel=1e-4)


def test_leaving_out_the_terms_of_a_method_is_refused_before_the_first_step(tmp_path):
    run = run_of(FromLogits, tmp_path, teacher=network(width=12, seed=1), method="kd")
    before = weights(run.student.backbone.conv1)
    with pytest.raises(ValueError, match=r"FromLogits\.compute_loss does not call .* the terms of method 'kd'"):
        run.train()
    assert same(weights(run.student.backbone.conv1), before)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(tmp_path):
    class Overflows(FromLogits):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) * float("inf")

    run = run_of(Overflows, tmp_path)
    with pytest.raises(FloatingPointError, match=r"Step 1: the term loss is inf.*Its images: "):
        run.train()
    assert (tmp_path / "nonfinite-step-1" / "report.json").is_file()


def test_an_auxiliary_head_that_gets_no_gradient_is_told_once(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(trainer_module.logger, "warning", told.append)
    labels = network().config
    student = tiny_network("pspnet", num_labels=4, id2label=labels.id2label, label2id=labels.label2id)
    run_of(FromLogits, tmp_path, student=student).train()
    (warning,) = [text for text in told if "no gradient" in text]
    assert warning.startswith("FromLogits.compute_loss gives 5 parameters no gradient")
    assert "auxiliary_head.classifier.weight" in warning


def job_of_two(rank, folder):
    for kind in (FromLogits, WithATermOfItsOwn):
        run = run_of(kind, folder, per_device_train_batch_size=2, **GLOO)
        run.train()
        torch.save(weights(run.student), folder / f"{kind.__name__}-{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_one_student(tmp_path):
    folder = spawn(2, tmp_path, job_of_two)
    for kind in (FromLogits, WithATermOfItsOwn):
        students = [torch.load(folder / f"{kind.__name__}-{rank}.pt") for rank in range(2)]
        assert same(*students)
