import json
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from several_processes import GLOO, spawn
from tiny_runs import SIZE, StopAfter, network, same, scenes, trainer, weights
from transformers import TrainerCallback

NAN, INF = math.nan, math.inf


def spoil(run, step, change):
    """Let `change` alter the batch of the optimizer step that is the `step`-th, counted from 1."""
    prepare = run._prepare_inputs

    def prepare_and_change(inputs):
        inputs = prepare(inputs)
        if run.state.global_step + 1 == step:
            change(inputs)
        return inputs

    run._prepare_inputs = prepare_and_change


def one_pixel_nan(inputs):
    inputs["pixel_values"][2, 0, 5, 5] = NAN


def stopped(run, *patterns):
    with pytest.raises(FloatingPointError) as stop:
        run.train()
    for pattern in patterns:
        assert pattern in str(stop.value)
    return str(stop.value)


def test_a_nan_in_an_image_stops_the_run_with_its_name_and_leaves_weights_and_batch(tmp_path):
    after_two = trainer(tmp_path / "two", method="cwd", max_steps=4)
    after_two.add_callback(StopAfter(2))
    after_two.train()
    run = trainer(tmp_path, method="cwd", max_steps=4)
    spoil(run, 3, one_pixel_nan)
    message = stopped(run, "Step 3: the term ce is nan, the term cwd is nan. The input is not finite: ")
    assert run.state.global_step == 2
    expected = dict(after_two.model.named_parameters())
    assert all(value.equal(expected[name]) for name, value in run.model.named_parameters())
    folder = tmp_path / "nonfinite-step-3"
    assert f'load_file("{folder}/batch.safetensors")' in message
    report, batch = json.loads((folder / "report.json").read_text()), load_file(folder / "batch.safetensors")
    assert batch["pixel_values"].shape == (4, 3, 32, 48)
    assert batch["labels"].shape == (4, 32, 48)
    assert batch["pixel_values"].isnan().nonzero().tolist() == [[2, 0, 5, 5]]
    assert report["terms"] == [{"ce": "nan", "cwd": "nan"}]
    assert len(report["files"]) == 4
    assert set(report["files"]) <= set(scenes()["image_id"])
    assert f"The input is not finite: {report['files'][2]}." in message
    assert {file.name for file in folder.iterdir()} == {"batch.safetensors", "report.json"}


def test_of_accumulated_batches_the_one_with_the_nan_is_saved(tmp_path):
    run = trainer(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=3, max_steps=1)
    seen = []

    def second_is_bad(inputs):
        seen.append(inputs["pixel_values"])
        if len(seen) == 2:
            one_pixel_nan(inputs)

    spoil(run, 1, second_is_bad)
    stopped(run, "Step 1: the term ce is nan")
    saved = load_file(tmp_path / "nonfinite-step-1" / "batch.safetensors")["pixel_values"]
    assert torch.equal(saved.nan_to_num(), seen[1].nan_to_num())


def test_a_nan_in_a_step_that_was_broken_off_does_not_stop_the_next_run(tmp_path):
    run = trainer(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=2, max_steps=2)

    class Break(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    spoil(run, 1, one_pixel_nan)
    run.add_callback(Break)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.pop_callback(Break)
    del run._prepare_inputs
    run.student.load_state_dict(network().state_dict())  # the batch norms have seen the NaN
    run.train()
    assert run.state.global_step == 2


def test_images_without_labels_and_names_are_counted_in_their_batch(tmp_path):
    class Unnamed(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"pixel_values": torch.full((3, 32, 48), NAN if index == 5 else index / 8)}

    run = trainer(tmp_path, method="kd", max_steps=2)
    run.train_dataset = Unnamed()
    message = stopped(run, "the term kd is nan. The input is not finite: image ", " of the batch. Look at")
    assert "Its images: not known (the data set gives no image_ids)" in message
    (folder,) = tmp_path.glob("nonfinite-step-*")
    assert load_file(folder / "batch.safetensors").keys() == {"pixel_values"}


def test_an_infinite_weight_of_the_student_is_named(tmp_path):
    run = trainer(tmp_path)
    with torch.no_grad():
        run.student.classifier.bias[1] = INF
    stopped(run, "The weights are not finite: student.classifier.bias.")


def test_a_teacher_whose_features_are_not_finite_is_named(tmp_path):
    teacher = network(width=12, seed=1)
    with torch.no_grad():
        teacher.classifier.weight.fill_(1e38)
    before = weights(teacher)
    run = trainer(tmp_path, teacher=teacher, method="kd")
    stopped(run, "the term kd is nan. The teacher's features are not finite: logits.")
    assert same(weights(teacher), before)


def test_logits_of_the_student_that_are_not_finite_are_named_and_looking_changes_no_statistics(tmp_path):
    run = trainer(tmp_path)
    with torch.no_grad():
        run.student.classifier.weight.fill_(3e38)
    find, before = run._guard._cause, {}
    run._guard._cause = lambda batch: before.update(weights(run.model)) or find(batch)
    stopped(run, "The student's logits are not finite")
    assert same(weights(run.model), before)


def test_a_term_that_overflows_by_itself_is_named_though_its_weight_is_zero(tmp_path):
    run = trainer(tmp_path, method="cwd,kd", method_kwargs={"kd": {"weight": 0.0}})
    kd = run.model.loss.losses[1]
    kd.terms = lambda student, teacher, labels: {"kd": student["logits"].sum() * 0 + INF}
    stopped(run, "Step 1: the term kd is inf. Images, weights,", "the term itself overflowed")


def test_a_gradient_that_is_not_finite_stops_the_run_though_the_terms_are(tmp_path):
    run = trainer(tmp_path, method="kd", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    run.model.loss.terms = lambda student, teacher, labels: {"kd": (student["logits"].sum() * 0).sqrt()}
    before = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    stopped(run, "Step 1: the gradient is not finite (its norm is nan), though all terms are.")
    assert all(value.equal(before[name]) for name, value in run.model.named_parameters())
    # Any of the accumulated batches may be to blame.
    assert len(load_file(tmp_path / "nonfinite-step-1" / "batch.safetensors")["labels"]) == 4


def test_a_gradient_that_overflows_in_fp16_is_left_to_the_gradient_scaler_and_no_batch_is_held_longer(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.train()
    guard = run._guard
    assert guard.batches == []
    guard.accelerator = SimpleNamespace(
        scaler="fp16's", num_processes=1, autocast=nullcontext, reduce=lambda tensor, reduction: tensor
    )
    images = {"pixel_values": torch.zeros(2, 3, *SIZE)}
    guard.remember(images, [], {"ce": torch.tensor(1.0)})
    run.student.classifier.bias.grad = torch.full((4,), INF)
    guard.check(2, str(tmp_path))
    guard.remember(images, [], {"ce": torch.tensor(INF)})
    with pytest.raises(FloatingPointError, match="Step 3: the term ce is inf"):
        guard.check(3, str(tmp_path))


def test_a_batch_that_can_not_be_saved_still_stops_the_run_by_name(tmp_path):
    run = trainer(tmp_path)
    spoil(run, 1, one_pixel_nan)
    (tmp_path / "nonfinite-step-1").write_text("in the way")
    stopped(run, "The input is not finite", "They could not be saved in")


def test_batches_of_several_sizes_that_make_no_one_file_still_stop_the_run_by_name(tmp_path):
    run = trainer(tmp_path, method="kd", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    run.model.loss.terms = lambda student, teacher, labels: {"kd": (student["logits"].sum() * 0).sqrt()}
    sizes = iter([32, 16])

    def other_size(inputs):
        height = next(sizes)
        inputs.update(pixel_values=inputs["pixel_values"][:, :, :height], labels=inputs["labels"][:, :height])

    spoil(run, 1, other_size)
    stopped(run, "the gradient is not finite", "They could not be saved in")


def test_logits_that_are_not_finite_are_not_scored(tmp_path):
    run = trainer(tmp_path)
    run.student.backbone.bn1.running_var[0] = NAN
    with pytest.raises(FloatingPointError, match="eval_loss is nan: the network's logits"):
        run.evaluate()


def stop_together(rank, folder):
    run = trainer(folder, method="kd", per_device_train_batch_size=3, max_steps=4, **GLOO)
    # A term of weight 0 whose gradient is finite: nothing but the guard tells the other process.
    terms = run.model.loss.terms
    bad = torch.tensor(NAN if rank == 1 else 0.0)

    def spoiled(*args):
        added = bad if run.state.global_step == 1 else 0
        return {name: value + added for name, value in terms(*args).items()}

    run.model.loss.terms = spoiled
    try:
        run.train()
    except FloatingPointError as error:
        (folder / f"{rank}.txt").write_text(f"{run.state.global_step} {error}")


@pytest.mark.slow
def test_two_processes_stop_together_and_the_one_with_the_nan_says_why(tmp_path):
    spawn(2, tmp_path, stop_together, seconds=120)
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == "1 Step 2: a term is not finite on another process, which says what and why."
    assert second.startswith("1 Step 2: the term kd is nan. ")
    assert [folder.name for folder in tmp_path.glob("nonfinite*")] == ["nonfinite-step-2-process-1"]
