"""What is refused, warned about or damaged in a checkpoint, and a disk that runs full."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import foreign_models
import pytest
import torch
from tiny_runs import arguments, network, processor, scenes, trainer
from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor

from hf_segkd.networks import FeatureNetwork
from hf_segkd.training.checkpoints import RECORD_FILE
from hf_segkd.training.run_settings import digest, run_settings
from hf_segkd.training.trainer import DistillationTrainer

SAVING = {"method": "kd", "max_steps": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder, **SAVING).train()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def resume(folder, checkpoint="checkpoint-1", **options):
    run = trainer(folder, **{**SAVING, **options})
    run.train(resume_from_checkpoint=str(folder / checkpoint))
    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "cwd"}, "trained with method 'kd', this run has 'cwd'"),
        ({"method": "none"}, "taught by a teacher whose weights have the SHA-256 .*, those of this run's .* None"),
        ({"method_kwargs": {"weight": 2.0}}, r"trained with method_kwargs \{\}, this run has \{'weight': 2.0\}"),
        ({"teacher_dtype": "float32"}, "trained with teacher_dtype 'auto', this run has 'float32'"),
        ({"seed": 7}, "trained with seed 42, this run has 7"),
        ({"learning_rate": 0.5}, "trained with learning_rate 0.01, this run has 0.5"),
        ({"optim": "adamw_torch"}, "trained with optim 'sgd', this run has 'adamw_torch'"),
        ({"frozen": ["backbone.conv1"]}, r"trained with frozen \[\], this run has \['backbone.conv1'\]"),
        ({"per_device_train_batch_size": 2}, "trained with images per step: 4, this run has 2"),
    ],
)
def test_other_settings_that_resuming_can_not_follow_are_refused_by_name_with_both_values(options, message, finished):
    with pytest.raises(ValueError, match=message) as error:
        resume(finished, **options)
    assert "--student" in str(error.value)


def test_another_teacher_student_or_other_images_are_refused(finished):
    teacher = network(width=12, seed=2)
    with pytest.raises(ValueError, match=f"taught by a teacher .* have {digest(teacher)}"):
        resume(finished, teacher=teacher)
    other = trainer(finished, student=network(aspp_dropout=0.2), **SAVING)
    with pytest.raises(ValueError, match=r"whose student has aspp_dropout 0\.\d \(this run: 0.2\)\n"):
        other.train(resume_from_checkpoint=True)
    for images, message in ((scenes(num_images=8), "training images: 12"), (scenes("val"), "names of the training")):
        other = DistillationTrainer(
            network(),
            arguments(finished, **SAVING),
            teacher=network(width=12, seed=1),
            train_dataset=images,
            processing_class=processor(),
        )
        with pytest.raises(ValueError, match=message):
            other.train(resume_from_checkpoint=True)


def with_pixels(folder, teacher=None, teacher_mean=None, **processor_options):
    def made(**options):
        return SegformerImageProcessor(size={"height": 32, "width": 48}, do_reduce_labels=False, **options)

    return DistillationTrainer(
        network(),
        arguments(folder, **SAVING),
        teacher=network(width=12, seed=1) if teacher is None else teacher,
        teacher_processor=None if teacher_mean is None else made(image_mean=teacher_mean),
        train_dataset=scenes(),
        processing_class=made(**processor_options),
    )


def test_a_teacher_of_other_strides_or_with_other_pixels_is_refused_by_what_differs(finished):
    backbone = {**network().config.backbone_config.to_dict(), "width": 12, "strides": [1, 2, 2, 2]}
    with pytest.raises(
        ValueError, match=r"whose teacher's config has backbone_config.strides \[1, 2, 2, 1\] \(this .* 2\]\)\n"
    ):
        with_pixels(finished, network(width=12, seed=1, backbone_config=backbone)).train("last")
    with pytest.raises(ValueError, match=r"trained with teacher's pixels: None, this run has \{'scale'"):
        with_pixels(finished, teacher_mean=[0.0, 0.0, 0.0]).train("last")


def test_other_pixels_of_the_student_are_warned_about(run, caplog):
    with_pixels(run, image_mean=[0.0, 0.0, 0.0]).train(True)
    warnings = [record.message for record in caplog.records if "The run goes on" in record.message]
    assert len(warnings) == 1
    assert "whose image processor has image_mean [0.485, 0.456, 0.406] (this run: [0.0, 0.0, 0.0])" in warnings[0]


def test_other_taps_of_foreign_networks_are_refused(tmp_path):
    def of_taps(student, teacher):
        return trainer(
            tmp_path,
            student=FeatureNetwork(segformer(), {"mine": f"segformer.stages.{student}.patch_embeddings.proj"}),
            teacher=FeatureNetwork(segformer(), {"mine": f"segformer.stages.{teacher}.patch_embeddings.proj"}),
            **{**SAVING, "max_steps": 1, "method": "at", "method_kwargs": {"taps": ["mine"]}},
        )

    labels = {"id2label": network().config.id2label, "label2id": network().config.label2id}

    def segformer():
        torch.manual_seed(0)
        return foreign_models.segformer(**labels)

    path = r"mine 'segformer.stages.0.patch_embeddings.proj' \(this run: 'segformer.stages.1.patch_embeddings.proj'\)\n"
    of_taps(0, 0).train()
    of_taps(0, 0).train(True)
    for changed, taps in (("student", (1, 0)), ("teacher", (0, 1))):
        with pytest.raises(ValueError, match=f"whose {changed}'s taps has {path}"):
            of_taps(*taps).train(True)


def test_a_learning_rate_that_is_scaled_otherwise_is_refused(tmp_path):
    scaled = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "scale_lr": True}
    trainer(tmp_path, recipe_batch_size=8, **scaled).train()
    with pytest.raises(ValueError, match=r"trained with scaled learning rate: 0\.005, this run has 0\.02"):
        trainer(tmp_path, recipe_batch_size=2, **scaled).train(True)


def test_the_student_of_a_checkpoint_and_records_of_other_versions_are_resumed(run, caplog):
    student = AutoModelForSemanticSegmentation.from_pretrained(run / "checkpoint-1")
    trainer(run, student=student, **SAVING).train(str(run / "checkpoint-1"))
    file = run / "checkpoint-1" / RECORD_FILE
    record = json.loads(file.read_text())
    del record["class map"], record["processes"], record["student"]["chunk_size_feed_forward"]
    record["student"]["of_another_version"] = 1
    record["student"]["backbone_config"] = {"model_type": "segkd-resnet", "width": 8, "dtype": None, "dropped": 1}
    file.write_text(json.dumps(record))
    resume(run)
    assert not [record for record in caplog.records if "The run goes on" in record.message]


def test_a_record_is_json_whatever_the_arguments_are(tmp_path):
    args = arguments(tmp_path, lr_scheduler_kwargs={"power": float("nan"), "lr_end": float("inf")})
    record = json.loads(json.dumps(run_settings(args, None, network(), None), allow_nan=False))
    assert record == run_settings(args, None, network(), None)


def test_all_that_differs_is_in_one_error(finished):
    with pytest.raises(ValueError, match="can't be resumed by this run") as error:
        resume(finished, method="cwd", seed=7, learning_rate=0.5)
    assert all(name in str(error.value) for name in ("method", "seed", "learning_rate"))


def test_other_settings_that_can_be_followed_are_warned_about_and_the_rest_is_not(run, caplog):
    resume(run, max_steps=3, ce_weight=0.5, scale_range=[1.0, 1.5], logging_steps=7, save_total_limit=5)
    warnings = [record.message for record in caplog.records if "The run goes on" in record.message]
    assert len(warnings) == 3
    for expected in ("max_steps 2, this run has 3", "ce_weight 1.0, this run has 0.5", "scale_range [0.5, 2.0]"):
        assert sum(expected in warning for warning in warnings) == 1


def test_the_same_settings_and_those_without_bearing_are_not_warned_about(run, caplog):
    resume(run, num_train_epochs=7, torch_empty_cache_steps=5, average_tokens_across_devices=False, bad_images="skip")
    assert not [record for record in caplog.records if "The run goes on" in record.message]


def test_a_finished_run_that_is_resumed_takes_no_step_more(run):
    resumed = resume(run, "checkpoint-2")  # within the first epoch of 3 steps
    assert resumed.state.global_step == 2
    saved = AutoModelForSemanticSegmentation.from_pretrained(run / "checkpoint-2").state_dict()
    assert all(value.equal(saved[name]) for name, value in resumed.student.state_dict().items())


def test_no_folder_or_no_checkpoint_is_told(tmp_path):
    for checkpoint, message in ((str(tmp_path / "nowhere"), "no checkpoint folder"), (True, "no checkpoint in")):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, **SAVING).train(resume_from_checkpoint=checkpoint)
    trainer(tmp_path).save_model()
    with pytest.raises(ValueError, match=f"holds no {RECORD_FILE}.*finished student"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path))
    trainer(tmp_path, **{**SAVING, "save_only_model": True, "max_steps": 1}).train()
    with pytest.raises(ValueError, match="saved with save_only_model"):
        resume(tmp_path)


def test_a_new_run_beside_checkpoints_of_an_earlier_one_is_warned_about(run, caplog):
    trainer(run, **{**SAVING, "max_steps": 1}).train()
    assert sum("of an earlier run, up to checkpoint-2" in record.message for record in caplog.records) == 1
    with pytest.raises(ValueError, match="SIGTERM is answered with a checkpoint anyway"):
        trainer(run, enable_jit_checkpoint=True)


@pytest.mark.parametrize("name", ["model.safetensors", "distillation.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_damaged_file_is_named_with_the_checkpoint_to_take_instead(name, run):
    file = run / "checkpoint-2" / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name} has {len(content) // 2} bytes of {len(content)}.*{run}/checkpoint-1"):
        resume(run, "checkpoint-2")
    file.write_bytes(b"\0" * len(content))
    with pytest.raises(ValueError, match=f"{name} is not what was saved"):
        resume(run, "checkpoint-2")
    file.unlink()
    with pytest.raises(ValueError, match=f"{name} is missing.*{run}/checkpoint-1"):
        resume(run, "checkpoint-2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trainer_state.json", '{"global_step": 2, "log_hi', r"trainer_state\.json can't be read"),
        ("config.json", '{"a":', r"config\.json can't be read"),
        ("config.json", None, r"config\.json is missing"),
        ("preprocessor_config.json", None, r"preprocessor_config\.json is missing"),
        (RECORD_FILE, "{}", f"{RECORD_FILE} is not the record of a run"),
        (RECORD_FILE, None, "checkpoint-2 can't be resumed: it holds no .* written last.* earlier version"),
    ],
)
def test_json_that_is_missing_or_cut_short_is_named(name, content, message, run):
    file = run / "checkpoint-2" / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ValueError, match=f"{message}.*Resume from the one before: {run}/checkpoint-1"):
        resume(run, "checkpoint-2")


@pytest.mark.parametrize("newest", [True, "last"])
def test_the_newest_whole_checkpoint_is_resumed_and_those_passed_over_are_warned_about(newest, run, caplog):
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-10")
    (run / "checkpoint-10" / "model.safetensors").unlink()
    (run / "checkpoint-11").mkdir()
    resumed = trainer(run, **SAVING)
    resumed.train(resume_from_checkpoint=newest)
    assert resumed.state.global_step == 2
    passed_over = [record.message for record in caplog.records if "Passed over" in record.message]
    assert ["checkpoint-11 can't be resumed: it is empty" in passed_over[0], len(passed_over)] == [True, 2]
    assert f"{run}/checkpoint-10/model.safetensors is missing" in passed_over[1]


def test_when_no_checkpoint_is_whole_all_reasons_are_told(run):
    for step in (1, 2):
        (run / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"No checkpoint in .* can be resumed:") as error:
        trainer(run, **SAVING).train(resume_from_checkpoint="last")
    assert [line.count("optimizer.pt is missing") for line in str(error.value).split("\n")] == [0, 1, 1]


class Malicious:
    def __init__(self, traces):
        self.traces = str(traces)

    def __reduce__(self):
        return os.mkdir, (self.traces,)


@pytest.mark.parametrize("as_zip", [True, False], ids=["torch", "pickle"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin"])
def test_no_pickle_in_a_checkpoint_runs_anything(name, as_zip, run, tmp_path):
    traces, file = tmp_path / "traces", run / "checkpoint-1" / name
    if as_zip:
        torch.save({"state": Malicious(traces)}, file)
    else:
        file.write_bytes(pickle.dumps({"state": Malicious(traces)}))
    record = json.loads((run / "checkpoint-1" / RECORD_FILE).read_text())
    record["files"][name] = file.stat().st_size
    (run / "checkpoint-1" / RECORD_FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"{name} is not what was saved.*never run"):
        resume(run)
    assert not traces.exists()
    with open(file, "rb") as opened:  # it would have
        torch.load(opened, weights_only=False) if as_zip else pickle.load(opened)
    assert traces.exists()


def test_weights_are_read_from_safetensors_alone(run):
    checkpoint = run / "checkpoint-1"
    record = json.loads((checkpoint / RECORD_FILE).read_text())
    del record["files"]["model.safetensors"]
    (checkpoint / RECORD_FILE).write_text(json.dumps(record))
    torch.save(network().state_dict(), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        resume(run)


def fail_at_second_save(run, monkeypatch, error):
    original = run._save_rng_state

    def save(folder):
        original(folder)
        if run.state.global_step == 2:
            raise error

    monkeypatch.setattr(run, "_save_rng_state", save)


def test_a_full_disk_leaves_the_checkpoint_before_and_says_how_much_is_needed(tmp_path, monkeypatch):
    run = trainer(tmp_path, **SAVING, save_total_limit=1)
    fail_at_second_save(run, monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match=r"step 2 could not be written: .*No space left") as error:
        run.train()
    assert "It takes about 0." in str(error.value)
    assert f"the newest checkpoint is {tmp_path}/checkpoint-1" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]
    resumed = resume(tmp_path)
    assert resumed.state.global_step == 2


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full_is_told_and_left_with_whole_checkpoints(tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.decode()}")
    try:
        run = trainer(tmp_path, **{**SAVING, "max_steps": 40})
        with pytest.raises(OSError, match="could not be written"):
            run.train()
        saved = len(list(tmp_path.iterdir()))
        assert 0 < saved < 40
        assert run.state.global_step == saved + 1
        resume(tmp_path, f"checkpoint-{saved}", max_steps=saved)  # which is not damaged
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_old_checkpoints_are_deleted_once_the_new_one_is_whole_and_the_best_one_stays(tmp_path, monkeypatch):
    run = trainer(
        tmp_path,
        **{**SAVING, "max_steps": 4},
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="mean_iou",
    )
    scores = iter([0.1, 0.4, 0.2, 0.3])
    monkeypatch.setattr(run, "_evaluate", lambda *args, **kwargs: {"eval_mean_iou": next(scores, 0.0)})
    run.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")


def test_a_checkpoint_that_made_room_for_one_which_never_came_goes_back_to_its_place(run, monkeypatch):
    (run / "unfinished").mkdir()
    (run / "checkpoint-2").rename(run / "unfinished" / "checkpoint-2-replaced")  # and then the process was killed
    assert resume(run, "checkpoint-2").state.global_step == 2
    assert not (run / "unfinished").exists()
    rename = Path.rename

    def broken(path, target):
        if path.parent.name == "unfinished" and path.name == "checkpoint-2":
            raise OSError("no more moves")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(OSError, match=f"no more moves[^$]*the newest checkpoint is {run}/checkpoint-2"):
        resume(run, "checkpoint-1")
    assert {path.name for path in run.iterdir()} == {"checkpoint-1", "checkpoint-2"}
