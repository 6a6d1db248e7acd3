import json
import math

import pytest
import torch
from tiny_runs import StopAfter, arguments, network, processor, same, scenes, trainer, weights
from transformers import AutoModelForSemanticSegmentation, Trainer, TrainerCallback, default_data_collator

from hf_segkd.data import AugmentedDataset, train_collator
from hf_segkd.losses import LOSSES
from hf_segkd.training.student_files import LOSS_STATE_FILE
from hf_segkd.training.trainer import DistillationTrainer


@pytest.mark.usefixtures("_small_discriminator")
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("method", LOSSES)
def test_every_method_trains_the_student_and_its_own_parameters_and_leaves_the_teacher_alone(method, bf16, tmp_path):
    teacher = network(width=12, seed=1).train()  # whatever mode it comes in
    teacher_before = weights(teacher)
    same_images = {"scale_range": [1.0, 1.0], "flip_probability": 0.0, "per_device_train_batch_size": 12}
    run = trainer(tmp_path, teacher=teacher, method=method, bf16=bf16, max_steps=10, **same_images)
    before = {name: value.detach().clone() for name, value in run.model.named_parameters() if value.requires_grad}
    run.train()
    unmoved = [name for name, value in run.model.named_parameters() if name in before and before[name].equal(value)]
    assert unmoved == []
    assert same(weights(teacher), teacher_before)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    steps = run.state.log_history[:-1]
    assert all(math.isfinite(value) for step in steps for value in step.values())
    assert len(steps) == 10
    assert sum(step["loss"] for step in steps[-3:]) < sum(step["loss"] for step in steps[:3])
    assert all(torch.isfinite(value).all() for value in weights(run.model).values())


def test_each_term_is_logged_raw_and_weighted_and_the_terms_add_up_to_the_loss(tmp_path):
    run = trainer(tmp_path, method="cwd", method_kwargs={"weight": 3.0}, ce_weight=0.5)
    run.train()
    for entry in run.state.log_history[:-1]:
        assert entry["loss_cwd"] == pytest.approx(3 * entry["raw_cwd"], rel=1e-5)
        assert entry["loss_ce"] == pytest.approx(0.5 * entry["raw_ce"], rel=1e-5)
        assert entry["loss"] == pytest.approx(entry["loss_ce"] + entry["loss_cwd"], rel=1e-4)


def test_the_distillation_weight_multiplies_the_terms_of_the_method_and_no_other(tmp_path):
    run = trainer(tmp_path, method="cwd,at", method_kwargs={"cwd": {"weight": 3.0}}, distillation_weight=0.3)
    run.train()
    own = run.distiller.loss.weights
    for entry in run.state.log_history[:-1]:
        assert entry["loss_cwd"] == pytest.approx(0.3 * 3 * entry["raw_cwd"], rel=1e-5)
        assert entry["loss_at"] == pytest.approx(0.3 * own["at"] * entry["raw_at"], rel=1e-5)
        assert entry["loss_ce"] == pytest.approx(entry["raw_ce"], rel=1e-5)
        assert entry["loss"] == pytest.approx(entry["loss_ce"] + entry["loss_cwd"] + entry["loss_at"], rel=1e-4)


def test_terms_are_means_over_accumulated_batches(tmp_path):
    run = trainer(tmp_path, method="kd", per_device_train_batch_size=2, gradient_accumulation_steps=2)
    run.train()
    for entry in run.state.log_history[:-1]:
        assert entry["loss"] == pytest.approx(entry["loss_ce"] + entry["loss_kd"], rel=1e-4)


def test_a_checkpoint_is_a_plain_student_and_the_loss_lies_beside_it(tmp_path):
    run = trainer(tmp_path, method="attnfd", save_strategy="steps", save_steps=3)
    run.train()
    run.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        loaded = AutoModelForSemanticSegmentation.from_pretrained(folder)
        assert same(weights(loaded), weights(run.student))
        assert "use_cache" not in json.loads((folder / "config.json").read_text())
        assert not list(folder.glob("training_args.bin"))
    assert (tmp_path / "checkpoint-3" / LOSS_STATE_FILE).is_file()
    assert not (tmp_path / LOSS_STATE_FILE).exists()


@pytest.mark.parametrize(
    "options",
    [
        {"method": "none"},
        {"method": "kd", "method_kwargs": {"weight": 0.0}},
        {"method": "attnfd", "method_kwargs": {"weight": 0.0}},
        {"method": "fakd_cwd,ickd", "method_kwargs": {"fakd_cwd": {"weight": 0.0}, "ickd": {"weight": 0.0}}},
    ],
)
def test_without_distillation_the_student_is_what_plain_trainer_makes_of_it(options, tmp_path):
    ours = trainer(tmp_path, head_lr_multiplier=1, **options)
    ours.train()
    args = arguments(tmp_path)
    student = network()
    plain = Trainer(
        model=student,
        args=args,
        train_dataset=ours.train_dataset,
        data_collator=default_data_collator,  # drops the names of the images
        optimizers=(
            torch.optim.SGD(student.parameters(), lr=args.learning_rate, momentum=0.9, weight_decay=args.weight_decay),
            None,
        ),
    )
    plain.train()
    assert same(weights(ours.student), weights(student))


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    run = trainer(
        tmp_path,
        method="cwd",
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="mean_iou",
    )
    run.train()
    best = AutoModelForSemanticSegmentation.from_pretrained(run.state.best_model_checkpoint)
    assert same(weights(best), weights(run.student))


def test_backbone_head_and_connectors_have_their_own_learning_rates_and_decay_reaches_all(tmp_path):
    run = trainer(tmp_path, method="attnfd", head_lr_multiplier=5, connector_lr_multiplier=20, weight_decay=0.01)
    groups = {round(group["lr"] / 0.01): group for group in run.create_optimizer().param_groups}
    sizes = {factor: sum(p.numel() for p in group["params"]) for factor, group in groups.items()}
    backbone = sum(p.numel() for p in run.student.backbone.parameters())
    assert sizes == {
        1: backbone,
        5: run.student.num_parameters() - backbone,
        20: sum(p.numel() for p in run.model.loss.parameters()),
    }
    assert {group["weight_decay"] for group in groups.values()} == {0.01}


def test_learning_rates_decay_as_the_power_0_9_of_what_is_left(tmp_path):
    run = trainer(tmp_path, max_steps=4)
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.01 * (1 - step / 4) ** 0.9 for step in range(4)])


def test_frozen_parameters_stay_and_a_beginning_that_fits_nothing_is_an_error(tmp_path):
    run = trainer(tmp_path, frozen=["backbone.conv1", "backbone.layer1"])
    before = weights(run.student.backbone.conv1)
    run.train()
    assert same(weights(run.student.backbone.conv1), before)
    with pytest.raises(ValueError, match="no parameter begins with 'layer1'"):
        trainer(tmp_path, frozen=["layer1"])


def test_a_frozen_backbone_gives_the_features_it_gave_and_the_batch_norms_of_the_rest_learn(tmp_path):
    run = trainer(tmp_path, frozen=["backbone"])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = run.student.eval()(images, output_features=True).features["backbone"].clone()
    buffers = dict(run.student.named_buffers())
    start = {name: buffer.clone() for name, buffer in buffers.items()}
    run.train()
    assert torch.equal(run.student.eval()(images, output_features=True).features["backbone"], before)
    moved = {name for name, buffer in buffers.items() if not torch.equal(buffer, start[name])}
    assert moved == {name for name in buffers if not name.startswith("backbone.")}


def test_a_batch_norm_of_which_one_parameter_is_frozen_goes_on_counting(tmp_path):
    run = trainer(tmp_path, frozen=["backbone.bn1.weight"])
    batch_norm = run.student.backbone.bn1
    start = batch_norm.running_mean.clone()
    run.train()
    assert not torch.equal(batch_norm.running_mean, start)


@pytest.mark.parametrize(("method", "go_on"), [("attnfd", False), ("ofd", True)])
def test_official_schedules_train_connectors_first_and_then_the_rest_or_all(method, go_on, tmp_path):
    options = {"method": method, "method_kwargs": {"preset": "official"}, "max_grad_norm": 1e-3}
    run = trainer(tmp_path, max_steps=6, **options)  # 3 steps an epoch
    seen = []

    class Record(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
            assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(1e-3, rel=1e-2)  # of what learns

        def on_step_end(self, args, state, control, **kwargs):
            connectors = [p.detach().clone() for p in run.model.loss.connector_parameters()]
            seen.append((run.student.classifier.weight.detach().clone(), connectors))

    start = run.student.classifier.weight.detach().clone()
    run.add_callback(Record())
    run.train()
    assert seen[2][0].equal(start)
    assert not seen[0][1][0].equal(seen[2][1][0])
    assert not seen[5][0].equal(start)
    assert all(first.equal(second) != go_on for first, second in zip(seen[2][1], seen[5][1], strict=True))


def test_a_run_of_warm_up_alone_is_told(tmp_path, caplog):
    for steps, told in ((6, False), (3, True)):  # 3 steps an epoch
        run = trainer(tmp_path, method="ofd", method_kwargs={"preset": "official"}, max_steps=steps)
        run.add_callback(StopAfter(1))
        run.train()
        assert ("the student will learn nothing" in caplog.text) == told


def test_the_loss_knows_how_much_of_the_training_has_passed(tmp_path):
    run = trainer(
        tmp_path, method="fakd_cwd", max_steps=4, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    passed = []

    class Record(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            passed.append(run.model.loss.progress.item())

    run.add_callback(Record())
    run.train()
    assert passed == [0.0, 0.25, 0.5, 0.75]


def test_augmentation_follows_the_epoch(tmp_path):
    run = trainer(tmp_path, max_steps=6)
    epochs = []

    class Record(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            epochs.append(int(run.train_dataset._epoch))

    run.add_callback(Record())
    run.train()
    assert isinstance(run.train_dataset, AugmentedDataset)
    assert epochs == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_trainer_knows_the_names_of_the_images_in_each_batch(num_workers, tmp_path):
    run = trainer(tmp_path, dataloader_num_workers=num_workers)
    seen, remember = [], run._guard.remember

    def record(inputs, files, terms):
        assert "image_ids" not in inputs
        seen.append(files)
        remember(inputs, files, terms)

    run._guard.remember = record
    run.train()
    assert [len(names) for names in seen] == [4, 4, 4]
    assert sorted(name for names in seen for name in names) == sorted(scenes()["image_id"])
    run.evaluate(run.train_dataset)  # the names must not reach the network there either
    run.evaluate()


def test_channels_last_gives_the_same_student_up_to_rounding(tmp_path):
    # Without dropout: its mask is drawn in the order of memory.
    off = {"aspp_dropout": 0.0, "decoder_dropout": 0.0, "classifier_dropout": 0.0}
    runs = [
        trainer(tmp_path, student=network(**off), method="cwd", channels_last=flag, max_steps=1)
        for flag in (False, True)
    ]
    for run in runs:
        run.train()
    for first, second in zip(runs[0].student.parameters(), runs[1].student.parameters(), strict=True):
        torch.testing.assert_close(first, second.contiguous(), rtol=1e-3, atol=1e-4)


def test_another_batch_size_than_the_recipes_is_warned_about_with_the_factor(tmp_path):
    text = arguments(tmp_path, recipe_batch_size=16).warn_about_batch_size()
    assert "16 images per optimizer step; this run has 4" in text
    assert "by 0.25 to 0.0025" in text
    assert arguments(tmp_path, recipe_batch_size=4).warn_about_batch_size() is None


def test_scale_lr_scales_the_learning_rate_once_and_saves_the_one_that_was_given(tmp_path):
    options = {"scale_lr": True, "recipe_batch_size": 16, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    schedule = {"lr_scheduler_kwargs": {"power": 1.0, "lr_end": 0.001}}
    run = trainer(tmp_path, **options, **schedule)
    run.train()
    assert [entry["learning_rate"] for entry in run.state.log_history[:2]] == pytest.approx([0.0025, 0.00175])
    assert json.loads((tmp_path / "checkpoint-1" / "training_args.json").read_text())["learning_rate"] == 0.01
    resumed = trainer(tmp_path, **options, **schedule)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.log_history[1]["learning_rate"] == pytest.approx(0.00175)
    assert {group["initial_lr"] for group in resumed.optimizer.param_groups} == {0.0025, 0.025}
    assert "rate of 0.01 is scaled by 0.25 to 0.0025" in run.args.warn_about_batch_size()
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="scale_lr scales the rates of the optimizer that is built"):
        DistillationTrainer(run.student, run.args, optimizers=(optimizer, None))


def test_the_official_attnfd_divides_the_cross_entropy_by_the_batch_too(tmp_path):
    run = trainer(tmp_path, method="attnfd", method_kwargs={"preset": "official"}, max_steps=1)
    student, batch = run.student, train_collator([run.train_dataset[index] for index in range(4)])
    del batch["image_ids"]
    features = run.teacher(pixel_values=batch["pixel_values"], output_features=True).features
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    outputs = run.model(**batch, teacher_features=features)
    plain = student(**batch, output_features=True)
    (distance,) = run.model.loss(plain.features, features, batch["labels"]).values()  # over the batch, times 2
    assert outputs["loss"].item() == pytest.approx(plain.loss.item() / 4 + distance.item(), rel=1e-5)


def test_statistics_are_not_sent_again_with_every_step_of_several_processes(tmp_path):
    distiller = trainer(tmp_path, method="fakd_cwd,cirkd").model
    fakd, cirkd = distiller.loss.losses
    statistics = [f"loss.losses.0.statistics.{name}" for name, _ in fakd.statistics.named_buffers()]
    memory = [f"loss.losses.1.memory.{name}" for name, _ in cirkd.memory.named_buffers()]
    assert distiller._ddp_params_and_buffers_to_ignore == statistics + memory


def test_a_data_loader_of_a_subclass_own_is_trained_on(tmp_path):
    class WithOwnLoader(DistillationTrainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(self.train_dataset, batch_size=4, collate_fn=self.data_collator)

    run = WithOwnLoader(
        network(),
        arguments(tmp_path, max_steps=4, save_strategy="steps", save_steps=2),
        train_dataset=scenes(),
        processing_class=processor(),
    )
    assert run.train().global_step == 4
