"""The IoU of each class in evaluations, and the best checkpoint by one of them."""

import json
import re

import numpy as np
import pytest
import torch
from tiny_runs import arguments, network, processor, scenes, trainer
from transformers import TrainerCallback

from hf_segkd.training.trainer import DistillationTrainer


def no_constant(word):
    raise AssertionError(f"{word} is no JSON")


def with_classes(count, folder, **options):
    names = {index: f"class {index}" for index in range(count)}
    student = network(id2label=names, label2id={name: index for index, name in names.items()})
    return DistillationTrainer(student, arguments(folder, **options))


def test_an_evaluation_gives_the_iou_of_each_class_also_in_the_log(tmp_path):
    run = trainer(tmp_path)
    scores = run.evaluate()
    counts = run.confusion_matrix.double()
    iou = counts.diagonal() / (counts.sum(0) + counts.sum(1) - counts.diagonal())
    keys = ["background", "shaded_ellipse", "striped_ellipse", "striped_box"]
    found = {f"eval_iou_{key}": value for key, value in zip(keys, iou.tolist(), strict=True) if value == value}
    assert {name: score for name, score in scores.items() if "_iou_" in name} == found
    assert found.items() <= run.state.log_history[-1].items()


def test_the_best_checkpoint_is_that_of_the_class(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    for metric in ("iou_background", "eval_iou_background"):
        run = trainer(tmp_path / metric, **options, metric_for_best_model=metric, load_best_model_at_end=True)
        run.train()
        ious = [entry["eval_iou_background"] for entry in run.state.log_history if "eval_iou_background" in entry]
        assert run.state.best_metric == max(ious)
        assert run.state.best_global_step == 1 + int(np.argmax(ious))


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("miou", "Did you mean 'mean_iou'"),
        ("iou_bckground", "Did you mean 'iou_background'"),
        ("runtime", "There are loss, mean_iou, mean_accuracy, overall_accuracy, iou_background, iou_shaded_ellipse"),
    ],
)
def test_a_score_that_there_will_not_be_is_refused_at_the_start(metric, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, metric_for_best_model=metric)


def test_of_several_sets_the_score_has_the_name_of_its_set(tmp_path):
    def run(**options):
        return DistillationTrainer(
            network(),
            arguments(tmp_path, eval_strategy="steps", eval_steps=3, **options),
            train_dataset=scenes(),
            eval_dataset={"day": scenes("val", 3), "night": scenes("val", 4)},
            processing_class=processor(),
        )

    for metric in ("mean_iou", "eval_iou_background"):
        with pytest.raises(ValueError, match=r"day_loss, day_mean_iou, .*day_iou_background"):
            run(metric_for_best_model=metric)
    with pytest.raises(ValueError, match="'loss', and evaluations of this run give no such score"):
        run(load_best_model_at_end=True, save_strategy="steps", save_steps=3)  # Trainer takes loss by default
    single = trainer(tmp_path, metric_for_best_model="day_mean_iou")  # which may get sets later
    with pytest.raises(ValueError, match="'day_mean_iou', and evaluations of this run give no such score"):
        single.train()
    trained = run(metric_for_best_model="night_iou_background")
    trained.train()
    logged = [entry["eval_night_iou_background"] for entry in trained.state.log_history if "eval_night_loss" in entry]
    assert [trained.state.best_metric] == logged


def test_a_class_whose_name_ends_in_loss_is_not_taken_for_a_loss(tmp_path):
    names = {0: "ground", 1: "forest loss"}
    student = network(id2label=names, label2id={name: index for index, name in names.items()})
    with pytest.raises(ValueError, match="greater_is_better is False"):
        DistillationTrainer(student, arguments(tmp_path, metric_for_best_model="iou_forest_loss"))
    DistillationTrainer(student, arguments(tmp_path, metric_for_best_model="iou_forest_loss", greater_is_better=True))


def test_many_classes_are_logged_only_if_they_are_asked_for(tmp_path):
    logged = [
        len(with_classes(count, tmp_path, **options)._scores.class_keys)
        for count, options in [(50, {}), (51, {}), (51, {"max_logged_classes": 51}), (3, {"max_logged_classes": 0})]
    ]
    assert logged == [50, 0, 51, 0]
    run = with_classes(51, tmp_path, metric_for_best_model="iou_class_7")
    assert run._scores.class_keys == {7: "iou_class_7"}


class Unlabelled(torch.utils.data.Dataset):
    """Images of one class, or of none."""

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"pixel_values": torch.randn(3, 32, 32), "labels": torch.full((32, 32), self.label)}


def run_with(label, folder, **options):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 3} | options
    return DistillationTrainer(
        network(), arguments(folder, **options), train_dataset=Unlabelled(0), eval_dataset=Unlabelled(label)
    )


def test_no_file_of_a_run_holds_a_nan(tmp_path):
    run = run_with(255, tmp_path, lr_scheduler_kwargs={"power": 1.0, "lr_end": 0.0}, save_steps=1)
    run.train()
    run.save_model()
    files = [*tmp_path.rglob("*.json")]
    assert {file.name for file in files} >= {"trainer_state.json", "training_args.json", "distillation.json"}
    for file in files:
        json.loads(file.read_text(), parse_constant=no_constant)
    assert "eval_mean_iou" not in run.state.log_history[-2]


def test_a_gradient_that_overflows_in_fp16_is_left_out_of_the_log(tmp_path):
    run = trainer(tmp_path)
    logs = {"loss": 1.0, "grad_norm": float("inf"), "learning_rate": 0.1}
    run.log(logs)
    assert logs.keys() >= {"loss", "learning_rate"}
    assert "grad_norm" not in run.state.log_history[-1]


def test_arguments_that_json_does_not_have_are_saved_as_words(tmp_path):
    run = trainer(tmp_path, lr_scheduler_kwargs={"power": 1.0, "lr_end": float("inf")})
    run.save_model()
    saved = json.loads((tmp_path / "training_args.json").read_text(), parse_constant=no_constant)
    assert saved["lr_scheduler_kwargs"] == {"power": 1.0, "lr_end": "Infinity"}


def test_a_best_checkpoint_by_a_class_that_no_image_shows_stops_the_run_with_the_reason(tmp_path):
    run = run_with(255, tmp_path, metric_for_best_model="iou_striped_box")
    with pytest.raises(ValueError, match=re.escape("this evaluation has no such score: no labelled pixel")):
        run.train()


def test_a_score_of_a_callback_may_choose_the_best_checkpoint(tmp_path):
    class Boundary(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_boundary"] = [0.1, 0.3, 0.2][state.global_step - 1]

    run = DistillationTrainer(
        network(),
        arguments(tmp_path, eval_strategy="steps", eval_steps=1, metric_for_best_model="boundary"),
        train_dataset=scenes(),
        eval_dataset=scenes("val", 2),
        processing_class=processor(),
        callbacks=[Boundary()],
    )
    run.train()
    assert run.state.best_metric == 0.3
    with pytest.raises(ValueError, match="A score of your own comes from the on_evaluate of one of callbacks"):
        trainer(tmp_path, metric_for_best_model="boundary")
