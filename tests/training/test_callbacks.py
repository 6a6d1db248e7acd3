from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import network, same, trainer, weights
from torch import nn
from transformers import TrainerCallback

from hf_segkd.losses import LOSSES
from hf_segkd.training.callbacks import AdversaryCallback
from hf_segkd.training.student_files import LOSS_STATE_FILE


def adversary_of(run):
    return run.model.loss.adversary


class InterruptedBatch(TrainerCallback):
    """Ends a run after the first of the fourth step's batches."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def sum_of_terms(log):
    return sum(value for name, value in log.items() if name.startswith("loss_"))


def steps_of(run):
    return [log for log in run.state.log_history if "loss" in log]


def callbacks_of(run):
    return [callback for callback in run.callback_handler.callbacks if isinstance(callback, AdversaryCallback)]


def test_three_steps_train_the_student_and_the_discriminator_and_leave_the_teacher_alone(tmp_path):
    teacher = network(width=12, seed=1)
    run = trainer(tmp_path, teacher=teacher, method="skds", max_steps=3, per_device_train_batch_size=2)
    before = [weights(module) for module in (run.student, adversary_of(run).discriminator, teacher)]
    run.train()
    student, discriminator, teacher = (
        weights(module) for module in (run.student, adversary_of(run).discriminator, teacher)
    )
    for now, then in ((student, before[0]), (discriminator, before[1])):
        assert [name for name in now if name.endswith("weight") and torch.equal(now[name], then[name])] == []
    assert same(teacher, before[2])
    assert all(value.isfinite().all() for value in discriminator.values())
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert trained.isdisjoint(map(id, adversary_of(run).parameters()))


@pytest.mark.parametrize("preset", ["official", "cirkd"])
@pytest.mark.usefixtures("_small_discriminator")
def test_a_resumed_run_ends_where_the_uninterrupted_one_does_bit_for_bit(preset, tmp_path):
    options = {
        "method": "skds",
        "method_kwargs": {"preset": preset},
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    straight = trainer(tmp_path / "straight", **options)
    straight.train()
    cut = trainer(tmp_path / "cut", **options)
    interruption = InterruptedBatch()
    cut.add_callback(interruption)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    cut.remove_callback(interruption)
    another = trainer(tmp_path / "cut", student=network(seed=9), **options)
    nn.init.constant_(adversary_of(another).discriminator[1].weight, 1.0)
    expected = weights(straight.model)
    assert any(".adversary.optimizer." in name for name in expected)
    for resumed in (another, cut):
        resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
        assert resumed.state.global_step == 6
        assert same(weights(resumed.model), expected)
        assert steps_of(resumed) == steps_of(straight)
    saved = load_file(tmp_path / "straight" / "checkpoint-6" / LOSS_STATE_FILE)
    assert same(saved, weights(straight.model.loss))


@pytest.mark.usefixtures("_small_discriminator")
def test_accumulated_batches_are_all_learnt_from_and_make_one_update(tmp_path, monkeypatch):
    run = trainer(tmp_path, method="skds", per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=4)
    adversary, events, losses = adversary_of(run), [], []
    originals = adversary.learn, adversary.update

    def learn(generator):
        events.append(("learn", generator))
        losses.append(originals[0](generator))
        return losses[-1]

    def update(progress):
        events.append(("update", progress))
        originals[1](progress)

    monkeypatch.setattr(adversary, "learn", learn)
    monkeypatch.setattr(adversary, "update", update)
    run.train()
    assert [name for name, _ in events] == ["learn", "learn", "update"] * 4
    assert [value for name, value in events if name == "update"] == [0.0, 0.25, 0.5, 0.75]
    draws = [value.bit_generator.seed_seq.entropy for name, value in events if name == "learn"]
    assert draws == [(42, step, batch, 0) for step in range(4) for batch in range(2)]
    logged = [log["discriminator_loss"] for log in run.state.log_history[:-1]]  # of each step
    assert logged == pytest.approx([((losses[i] + losses[i + 1]) / 2).item() for i in range(0, 8, 2)])
    assert all(log["loss"] == pytest.approx(sum_of_terms(log), rel=1e-3) for log in run.state.log_history[:-1])


def test_every_seed_step_batch_and_process_draws_its_own_mix():
    class Recorder:
        batches_learnt = 0

        def learn(self, generator: np.random.Generator):
            draws.append(generator.random())

    draws = []
    callback = AdversaryCallback(Recorder(), lambda name, value: None)
    for seed, step, batch, rank in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0)):
        callback.adversary.batches_learnt = batch
        arguments = SimpleNamespace(seed=seed, process_index=rank), SimpleNamespace(global_step=step), None
        callback.on_substep_end(*arguments)
    assert len(set(draws)) == 5
    assert draws[0] == draws[-1]


@pytest.mark.usefixtures("_small_discriminator")
def test_a_step_that_fp16_skips_for_the_student_is_skipped_for_the_discriminator(tmp_path):
    run = trainer(tmp_path, method="skds", max_steps=1)
    (callback,) = callbacks_of(run)
    optimizer = SimpleNamespace(step_was_skipped=True)
    update = callback.on_optimizer_step
    callback.on_optimizer_step = lambda *args, **kwargs: update(*args, **kwargs | {"optimizer": optimizer})
    before = weights(adversary_of(run).discriminator[4])
    run.train()
    assert same(weights(adversary_of(run).discriminator[4]), before)
    assert adversary_of(run).batches_learnt == 0


@pytest.mark.usefixtures("_small_discriminator")
def test_a_gradient_of_the_discriminator_that_is_not_finite_stops_the_run_at_a_step_that_is_named(tmp_path):
    run = trainer(tmp_path, method="skds", max_steps=4)
    adversary = adversary_of(run)

    class Spoil(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                adversary._gradient = torch.tensor(float("nan"))

        on_pre_optimizer_step = on_substep_end

    run.add_callback(Spoil())
    with pytest.raises(FloatingPointError, match=r"^Step 2: the gradient of the discriminator is not finite"):
        run.train()


@pytest.mark.usefixtures("_small_discriminator")
def test_clipping_the_students_gradient_does_not_clip_the_discriminators(tmp_path):
    students, adversaries = [], []
    for norm in (0.0, 1e-6):
        run = trainer(tmp_path, method="skds", max_steps=1, max_grad_norm=norm)
        start = weights(adversary_of(run))
        run.train()
        students.append(weights(run.student))
        adversaries.append(weights(adversary_of(run)))
    assert not same(*students)
    assert same(*adversaries)
    assert not torch.equal(adversaries[0]["discriminator.4.weight"], start["discriminator.4.weight"])


@pytest.mark.usefixtures("_small_discriminator")
def test_one_adversary_among_several_losses_is_found(tmp_path):
    run = trainer(tmp_path, method="cwd,skds", max_steps=1)
    (callback,) = callbacks_of(run)
    start = weights(callback.adversary)
    run.train()
    assert not same(weights(callback.adversary), start)


@pytest.mark.usefixtures("_small_discriminator")
@pytest.mark.parametrize("method", [*LOSSES, "none"])
def test_methods_without_an_adversary_have_no_callback_for_it(method, tmp_path):
    assert len(callbacks_of(trainer(tmp_path, method=method))) == (1 if method == "skds" else 0)


def test_without_the_adversarial_term_skds_has_no_callback_for_it(tmp_path):
    assert callbacks_of(trainer(tmp_path, method="skds", method_kwargs={"adversarial_weight": 0})) == []
