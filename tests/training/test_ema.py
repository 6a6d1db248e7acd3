from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import arguments, network, same, trainer, weights
from transformers import AutoModelForSemanticSegmentation, TrainerCallback

from hf_segkd.training.ema import AVERAGE_FILE, AverageAfterStep, StudentAverage

OPTIONS = {"method": "kd", "ema_decay": 0.3, "max_steps": 5, "save_strategy": "steps", "save_steps": 2}


class EachStep(TrainerCallback):
    def __init__(self, action):
        self.action = action

    def on_step_end(self, args, state, control, **kwargs):
        self.action(state, control)


def parameters(network):
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def test_the_average_is_that_of_the_formula_and_is_what_is_saved(tmp_path):
    run = trainer(tmp_path, **OPTIONS)
    expected = {name: value.double() for name, value in parameters(run.student).items()}
    decays = iter([1 / 10, 2 / 11, 3 / 12, 0.3, 0.3])

    def follow(state, control):
        decay = next(decays)
        for name, value in run.student.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach().double()

    run.add_callback(EachStep(follow))
    run.train()
    run.save_model()
    saved = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert same(weights(saved), weights(run.student))
    for name, value in saved.named_parameters():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
    assert not (tmp_path / AVERAGE_FILE).exists()


def test_averaging_changes_nothing_in_training_and_a_checkpoint_holds_both_weights(tmp_path):
    for folder, decay in (("with", 0.3), ("without", 0.0)):
        trainer(tmp_path / folder, **OPTIONS | {"ema_decay": decay}).train()
    with_average, without = (
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path / folder / "checkpoint-4")
        for folder in ("with", "without")
    )
    assert same(weights(with_average), weights(without))
    averages = load_file(tmp_path / "with" / "checkpoint-4" / AVERAGE_FILE)
    assert averages.keys() == parameters(without).keys()
    assert not any(torch.equal(averages[name], value) for name, value in parameters(without).items())


def test_evaluation_scores_the_average_and_gives_the_student_its_weights_back(tmp_path):
    run = trainer(tmp_path, **OPTIONS | {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no"})
    seen = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                seen["before"] = weights(run.student)

        def on_evaluate(self, args, state, control, **kwargs):
            seen["after"], seen["matrix"] = weights(run.student), run.confusion_matrix
            run.save_model(str(tmp_path / "average"))
            control.should_training_stop = True

    run.add_callback(Watch())
    run.train()
    assert same(seen["before"], seen["after"])
    other = trainer(tmp_path, student=AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "average"))
    assert not same(weights(other.student), seen["after"])
    other.evaluate()
    assert other.confusion_matrix.equal(seen["matrix"])


def test_a_resumed_run_has_the_average_of_the_uninterrupted_one_bit_for_bit(tmp_path):
    straight = trainer(tmp_path / "straight", **OPTIONS)
    straight.train()
    cut = trainer(tmp_path / "cut", **OPTIONS)
    cut.add_callback(EachStep(lambda state, control: vars(control).update(should_training_stop=state.global_step >= 2)))
    cut.train()
    resumed = trainer(tmp_path / "cut", student=network(seed=9), **OPTIONS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert same(weights(resumed.student), weights(straight.student))
    for file in ("model.safetensors", AVERAGE_FILE):
        first, second = (load_file(tmp_path / folder / "checkpoint-5" / file) for folder in ("straight", "cut"))
        assert same(first, second)


def test_the_best_model_at_the_end_is_the_average_that_was_best(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    run = trainer(tmp_path, **OPTIONS | options, metric_for_best_model="mean_iou")
    scores = []
    run.add_callback(EachStep(lambda state, control: scores.append(state.best_metric)))
    run.train()
    assert same(parameters(run.student), load_file(f"{run.state.best_model_checkpoint}/{AVERAGE_FILE}"))
    assert run.evaluate()["eval_mean_iou"] == pytest.approx(run.state.best_metric, abs=1e-12)


def test_the_publication_in_the_middle_of_training_is_of_the_average(tmp_path):
    run = trainer(tmp_path / "run", **OPTIONS | {"max_steps": 2, "save_strategy": "no"})
    run.add_callback(EachStep(lambda state, control: run._write_publication(tmp_path / f"{state.global_step}")))
    run.train()
    published = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "2")
    assert same(parameters(published), parameters(run.student))


def test_steps_that_fp16_skips_do_not_count():
    student = torch.nn.Linear(2, 1)
    average = StudentAverage(student, 0.9)
    with torch.no_grad():
        student.weight += 1
    for skipped in (True, False):
        before = parameters(student)
        AverageAfterStep(average).on_optimizer_step(
            None, None, None, optimizer=SimpleNamespace(step_was_skipped=skipped)
        )
        with average.in_student():
            moved = student.weight - before["weight"]
        torch.testing.assert_close(moved, torch.full((1, 2), -1.0 if skipped else -0.1))
        assert average.updates == (0 if skipped else 1)


def test_wrong_decays_and_checkpoints_without_averages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ema_decay must be below 1"):
        arguments(tmp_path, ema_decay=1.0)
    trainer(tmp_path, **OPTIONS | {"ema_decay": 0.0, "max_steps": 2}).train()
    with pytest.raises(ValueError, match=r"holds no ema\.safetensors"):
        trainer(tmp_path, **OPTIONS).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_average_of_a_second_run_of_a_trainer_begins_with_the_weights_of_then(tmp_path):
    run = trainer(tmp_path, ema_decay=0.3, max_steps=1, learning_rate=1e-9)
    run.train()
    other = network(seed=5)
    run.student.load_state_dict(other.state_dict())
    run.train()
    torch.testing.assert_close(parameters(run.student), parameters(other))
