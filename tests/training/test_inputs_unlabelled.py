import json

import pytest
import torch
import torch.nn.functional as F
from several_processes import GLOO, spawn
from tiny_runs import SIZE, StopAfter, arguments, network, processor, same, scenes, weights, without_batch_coupling

from hf_segkd.commands import train
from hf_segkd.data import train_collator, without_labels
from hf_segkd.losses.kd import pixel_wise_divergence
from hf_segkd.training.trainer import DistillationTrainer

NO_DROPOUT = {"aspp_dropout": 0.0, "decoder_dropout": 0.0, "classifier_dropout": 0.0}


def trainer(folder, student=None, train=None, unlabelled="val", **overrides):
    method = overrides.pop("method", "kd")
    return DistillationTrainer(
        model=network(**NO_DROPOUT) if student is None else student,
        teacher=None if method == "none" else network(width=12, seed=1),
        args=arguments(folder, method=method, **overrides),
        train_dataset=scenes(num_images=8) if train is None else train,
        unlabelled_dataset=None if unlabelled is None else scenes(unlabelled, 6),
        processing_class=processor(),
    )


def gradients(loss, module):
    module.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in module.named_parameters()}


class Unlabelled(torch.utils.data.Dataset):
    """A user's own data set without labels."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"pixel_values": torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(index))}


@pytest.mark.parametrize("labelled", [2, 0])
def test_labels_teach_through_their_images_and_the_teacher_through_all(labelled, tmp_path):
    run = trainer(tmp_path)
    rows = [0, 1, 9, 10] if labelled else [8, 9, 10, 11]
    batch = train_collator([run.train_dataset[row] for row in rows])
    loss = run.compute_loss(run.model, run._prepare_inputs(dict(batch)))
    actual = gradients(loss, run.student)
    output = run.student(pixel_values=batch["pixel_values"], output_features=True)
    with torch.no_grad():
        taught = run.teacher(pixel_values=batch["pixel_values"], output_features=True).features["logits"]
    expected = pixel_wise_divergence(output.features["logits"], taught)
    if labelled:
        expected = expected + F.cross_entropy(output.logits[:2], batch["labels"][:2], ignore_index=255)
    torch.testing.assert_close(loss, expected)
    for name, gradient in gradients(expected, run.student).items():
        torch.testing.assert_close(actual[name], gradient, msg=name)


@pytest.mark.parametrize("alone", ["without annotations", "a data set without labels"])
def test_images_without_labels_alone_train_the_student_by_the_teacher(alone, tmp_path):
    train = Unlabelled() if alone == "a data set without labels" else without_labels(scenes(num_images=8))
    run = trainer(tmp_path, train=train, unlabelled=None, max_steps=6)
    before = weights(run.student)
    run.train()
    steps = run.state.log_history[:-1]
    assert all(step["raw_ce"] == 0 and step["loss"] == pytest.approx(step["loss_kd"]) for step in steps)
    assert steps[-1]["raw_kd"] < steps[0]["raw_kd"]
    assert not same(weights(run.student), before)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_with_unlabelled_images_that_is_resumed_mid_epoch_ends_bit_for_bit_the_same(num_workers, tmp_path):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "dataloader_num_workers": num_workers}
    straight = trainer(tmp_path / "straight", **options)  # 3 batches an epoch: 8 labelled, 8 of 6 unlabelled, 16 of 5
    straight.train()
    cut = trainer(tmp_path / "cut", **options)
    cut.add_callback(StopAfter(2))
    cut.train()
    resumed = trainer(tmp_path / "cut", student=network(seed=9, **NO_DROPOUT), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert resumed.state.global_step == 5
    assert same(weights(resumed.model), weights(straight.model))


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("ifvd", {}),
        ("cwd,fakd_pd", {}),
        ("cirkd", {}),
        ("kd", {"drop_ignored": True}),
        ("attnfd", {"teacher_attention": "trained"}),
    ],
)
def test_a_method_that_needs_labels_is_refused_by_name_with_those_that_do_not(method, kwargs, tmp_path):
    said = rf"'{method}', as it is set, .* unlabelled_dataset have no labels.*: kd, hint, at"
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, method=method, method_kwargs=kwargs)
    with pytest.raises(ValueError, match=r"images of train_dataset have no labels"):
        trainer(tmp_path, method=method, method_kwargs=kwargs, train=without_labels(scenes()), unlabelled=None)
    with pytest.raises(ValueError, match=r"the training batch has no labels"):
        trainer(tmp_path, method=method, method_kwargs=kwargs, train=Unlabelled(), unlabelled=None).train()


def test_cirkd_without_its_memory_needs_no_labels(tmp_path):
    trainer(tmp_path, method="cirkd", method_kwargs={"pixel_weight": 0.0, "region_weight": 0.0}, max_steps=1).train()


def test_without_a_method_unlabelled_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="With method 'none' the student learns from labels alone, and the images of"):
        trainer(tmp_path, method="none")
    with pytest.raises(ValueError, match="and the training batch has no labels"):
        trainer(tmp_path, method="none", train=Unlabelled(), unlabelled=None).train()


def test_what_unlabelled_images_can_not_be_mixed_with_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train_dataset is Unlabelled\. Let your own data set give"):
        trainer(tmp_path, train=Unlabelled())
    with pytest.raises(ValueError, match="unlabelled_ratio must be above 0, got 0"):
        trainer(tmp_path, unlabelled_ratio=0)


def test_the_command_trains_on_a_folder_of_images_and_the_report_tells_their_number(tmp_path):
    (tmp_path / "photos").mkdir()
    for row in scenes(num_images=5):
        row["image"].save(tmp_path / "photos" / f"{row['image_id']}.jpg")
    network(width=12).save_pretrained(tmp_path / "teacher")
    processor().save_pretrained(tmp_path / "teacher")
    report = train.main(
        [
            *("--dataset", "demo", "--dataset_options", json.dumps({"image_size": SIZE, "num_classes": 4})),
            *("--max_train_samples", "8", "--max_eval_samples", "2", "--image_size", *map(str, SIZE)),
            *("--student_config", json.dumps({"backbone": "mobilenet_v2", "depth_multiplier": 0.1})),
            *("--teacher", str(tmp_path / "teacher"), "--method", "cwd", "--unlabelled_ratio", "0.5"),
            *("--preflight_images", "0"),
            *("--unlabelled_dir", str(tmp_path / "photos"), "--num_train_epochs", "1"),
            *("--per_device_train_batch_size", "3", "--save_strategy", "no", "--use_cpu", "--disable_tqdm", "true"),
            *("--output_dir", str(tmp_path / "student")),
        ]
    )
    assert report.steps == 4  # 8 labelled and 4 unlabelled images
    assert (report.train_images, report.unlabelled_images, report.unlabelled_ratio) == (8, 5, 0.5)


def train_uncoupled(folder, batch_size, **options):
    student = without_batch_coupling(network())
    run = trainer(folder, student=student, per_device_train_batch_size=batch_size, max_steps=6, **options)
    run.train()
    return weights(run.student)


def job(rank, folder):
    torch.save(train_uncoupled(folder, 2, **GLOO), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_with_unlabelled_images_train_as_one(tmp_path):
    one = train_uncoupled(tmp_path, 4)  # 4 batches an epoch, as unevenly labelled as chance has it
    spawn(2, tmp_path, job)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert same(first, second)
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_an_evaluation_needs_labels(tmp_path):
    run = trainer(tmp_path)
    with pytest.raises(ValueError, match="data set has no annotations"):
        run.evaluate(without_labels(scenes()))
    with pytest.raises(ValueError, match="An evaluation needs labels"):
        run.evaluate(Unlabelled())


def test_unlabelled_images_that_are_no_data_set_of_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unlabelled_dataset is a list"):
        DistillationTrainer(
            network(), arguments(tmp_path, method="kd"), teacher=network(width=12, seed=1), train_dataset=scenes(),
            unlabelled_dataset=[1, 2], processing_class=processor(),
        )  # fmt: skip
