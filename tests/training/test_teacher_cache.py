"""A teacher that is kept on disk teaches as one that is asked anew."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import StopAfter, arguments, network, processor, same, scenes, weights

from hf_segkd.data import train_collator
from hf_segkd.training.teacher_cache import KEY_FILE
from hf_segkd.training.trainer import DistillationTrainer

IMAGES, STEPS_PER_EPOCH = 12, 3


def trainer(folder, cache=None, unlabelled=None, teacher=None, **overrides):
    options = {"method": "attnfd", "max_steps": 12, "teacher_views": 2, "teacher_cache_dtype": "float32", **overrides}
    return DistillationTrainer(
        model=network(),
        args=arguments(folder, teacher_cache=None if cache is None else str(cache), **options),
        teacher=network(width=12, seed=1) if teacher is None else teacher,
        train_dataset=scenes(),
        unlabelled_dataset=unlabelled,
        processing_class=processor(),
    )


def counted(run):
    """How many images the teacher has seen."""
    seen = []
    run.teacher.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return seen


def files(cache):
    return sorted(cache.glob("*/*.safetensors"))


@pytest.mark.parametrize("method", ["attnfd", "kd", "fakd_cwd", "cirkd"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
def test_students_with_and_without_a_float32_cache_are_the_same_bit_for_bit(method, channels_last, tmp_path):
    options = {"method": method, "channels_last": channels_last, "save_strategy": "no"}
    plain = trainer(tmp_path / "plain", **options)
    plain.train()
    cached = trainer(tmp_path / "cached", tmp_path / "cache", **options)  # now: it sets the seed
    asked = counted(cached)
    cached.train()
    assert same(weights(plain.model), weights(cached.model))
    assert asked == [1] + [4] * (2 * STEPS_PER_EPOCH)  # the first tells the size; 4 epochs of two views
    assert len(files(tmp_path / "cache")) == 2 * IMAGES == cached.train_dataset.num_crops


def test_a_second_run_of_another_seed_asks_the_teacher_nothing(tmp_path):
    first = trainer(tmp_path, tmp_path / "cache", max_steps=6)
    first.train()
    again = trainer(tmp_path, tmp_path / "cache", max_steps=6, seed=3, data_seed=first.args.seed)
    asked = counted(again)
    again.train()
    assert asked == [1]
    assert not same(weights(first.student), weights(again.student))  # dropout, order and weights are the seed's


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_sixteen_bits_round_each_map_once(dtype, largest, tmp_path):
    run = trainer(tmp_path, tmp_path / "cache", teacher_cache_dtype=dtype)
    batch = train_collator([run.train_dataset[row] for row in range(4)])
    images, crops = batch["pixel_values"], batch["crop_ids"]
    exact, kept = run._taught(images, crops), run._taught(images, crops)
    for tap, feature in exact.items():
        assert torch.equal(kept[tap], feature.to(getattr(torch, dtype)))
        assert 0 < (kept[tap].float() - feature).abs().max() <= largest * feature.abs().max()


def test_features_come_back_to_the_image_they_are_of_and_only_missing_ones_are_written(tmp_path):
    run = trainer(tmp_path, tmp_path / "cache")
    batch = train_collator([run.train_dataset[row] for row in range(4)])
    images, crops = batch["pixel_values"], batch["crop_ids"]
    taught = run._taught(images, crops)
    swapped = run._taught(images[[2, 0]], [crops[2], crops[0]])
    assert all(torch.equal(swapped[tap], feature[[2, 0]]) for tap, feature in taught.items())
    files(tmp_path / "cache")[0].unlink()
    before = {file: file.stat().st_mtime_ns for file in files(tmp_path / "cache")}
    again = run._taught(images, crops)
    assert all(torch.equal(again[tap], feature) for tap, feature in taught.items())
    assert len(files(tmp_path / "cache")) == 4
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_file_that_is_cut_off_is_computed_anew(tmp_path):
    run = trainer(tmp_path, tmp_path / "cache")
    batch = train_collator([run.train_dataset[0]])
    taught = run._taught(batch["pixel_values"], batch["crop_ids"])
    (file,) = files(tmp_path / "cache")
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    again = run._taught(batch["pixel_values"], batch["crop_ids"])
    assert all(torch.equal(again[tap], feature) for tap, feature in taught.items())
    assert file.read_bytes() == whole


def test_a_run_that_stopped_goes_on_bit_for_bit(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4}
    whole = trainer(tmp_path / "whole", tmp_path / "cache", **options)
    whole.train()
    stopped = trainer(tmp_path / "stopped", tmp_path / "other", **options)
    stopped.add_callback(StopAfter(4))
    stopped.train()
    resumed = trainer(tmp_path / "stopped", tmp_path / "other", **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole.model), weights(resumed.model))


def test_unlabelled_images_have_as_many_views_and_are_kept_too(tmp_path):
    run = trainer(tmp_path, tmp_path / "cache", scenes("val", 5), method="kd", max_steps=60, unlabelled_ratio=0.5)
    run.train()  # 18 images an epoch; 15 epochs
    assert run.train_dataset.num_crops == len(files(tmp_path / "cache")) == 2 * (IMAGES + 5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"teacher": network(width=12, seed=2)}, r"- teacher: '[0-9a-f]{64}', this run has '[0-9a-f]{64}'"),
        ({"crop_size": [16, 16]}, r"- crop_size: None, this run has \[16, 16\]"),
        ({"method": "kd"}, r"- features: \['backbone', .*\], this run has \['logits'\]"),
        ({"teacher_views": 3}, "- teacher_views: 2, this run has 3"),
        ({"seed": 1}, "- seed of the images: 42, this run has 1"),
        ({"teacher_cache_dtype": "float16"}, "- teacher_cache_dtype: 'float32', this run has 'float16'"),
        ({"teacher_dtype": "bfloat16"}, "- teacher_dtype: 'torch.float32', this run has 'torch.bfloat16'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_cache_of_another_run_is_refused_by_what_differs(change, named, tmp_path):
    trainer(tmp_path, tmp_path / "cache")
    with pytest.raises(ValueError, match="is the teacher cache of another run.*\n(.*\n)*" + named):
        trainer(tmp_path, tmp_path / "cache", **change)
    trainer(tmp_path, tmp_path / "another", **change)


def test_the_size_is_told_before_the_first_step_and_is_that_of_the_full_cache(tmp_path, caplog):
    run = trainer(tmp_path, tmp_path / "cache", max_steps=6)
    run.train()
    told = re.search(r"up to (\S+) GiB: 24 crops of (\S+) MiB in float32; 0 are there", caplog.text)
    kept = sum(value.nbytes for file in files(tmp_path / "cache") for value in load_file(file).values())
    assert float(told[1]) == pytest.approx(kept / 2**30, rel=1e-2)
    assert float(told[2]) == pytest.approx(kept / 24 / 2**20, rel=1e-2)
    assert "has 2 epochs: no crop comes again" in caplog.text


def test_a_limit_or_a_full_disk_stops_the_run_before_its_first_step(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"takes up to .* GiB: 24 crops .* teacher_cache_limit is 0.0001 GiB. Fewer"):
        trainer(tmp_path, tmp_path / "cache", teacher_cache_limit=1e-4).train()
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(ValueError, match=r"0 are there. The disk has 9.31e-10 GiB left. Fewer teacher_views"):
        trainer(tmp_path, tmp_path / "cache").train()
    assert files(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teacher_views": 0}, "teacher_cache needs teacher_views"),
        ({"teacher_batch_norm": "batch_stats"}, "depends on the other images of its batch and can't be kept"),
        ({"teacher_cache_dtype": "int8"}, "teacher_cache_dtype"),
        ({"teacher_views": -1}, "teacher_views"),
    ],
)
def test_what_can_not_be_kept_is_refused(options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, tmp_path / "cache", **options)


def test_a_cache_without_a_teacher_and_views_of_a_data_set_of_ones_own_are_refused(tmp_path):
    args = {"teacher_cache": str(tmp_path / "cache"), "teacher_views": 2}
    with pytest.raises(ValueError, match="there is no teacher: leave it out"):
        DistillationTrainer(
            network(), arguments(tmp_path, **args), train_dataset=scenes(), processing_class=processor()
        )
    own = [{"pixel_values": torch.zeros(3, 32, 48), "labels": torch.zeros(32, 48, dtype=torch.int64)}] * 4
    with pytest.raises(ValueError, match=r"teacher_views is for .* \(list\) gives tensors\. Leave it out"):
        DistillationTrainer(
            network(), arguments(tmp_path, teacher_views=2), train_dataset=own, processing_class=processor()
        )


def test_a_value_that_16_bits_can_not_hold_is_refused_by_name(tmp_path):
    teacher = network(width=12, seed=1)
    teacher.classifier.bias.data.fill_(1e5)
    run = trainer(tmp_path, tmp_path / "cache", teacher=teacher, method="kd", teacher_cache_dtype="float16")
    with pytest.raises(ValueError, match=r"teacher's logits holds 1e\+05, which is too large for torch.float16"):
        run.train()
    assert files(tmp_path / "cache") == []
    assert json.loads((tmp_path / "cache" / KEY_FILE).read_text())["teacher_views"] == 2


def test_parts_of_files_that_a_kill_left_are_removed_when_they_are_old(tmp_path):
    folder = tmp_path / "cache" / "ab"
    folder.mkdir(parents=True)
    save_file({"logits": torch.zeros(1)}, folder / "abc.safetensors.host-1.part")
    save_file({"logits": torch.zeros(1)}, folder / "abd.safetensors.host-1.part")
    os.utime(folder / "abc.safetensors.host-1.part", (0, 0))
    trainer(tmp_path, tmp_path / "cache")
    assert [file.name for file in folder.iterdir()] == ["abd.safetensors.host-1.part"]
