import copy

import pytest
import torch
from foreign_models import build, segformer
from tiny_runs import arguments, network, same, trainer, weights
from torch import nn

from hf_segkd.networks.teacher_modes import batch_statistics, takes_batch_statistics

IMAGES = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def features(model):
    with torch.no_grad():
        return model(pixel_values=IMAGES, output_features=True).features


def test_batch_norms_work_as_in_training_and_dropout_as_in_evaluation():
    teacher = network(seed=1).eval()
    training = copy.deepcopy(teacher).train()
    for module in training.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    expected, running = features(training), features(teacher)
    with batch_statistics(teacher):
        actual = features(teacher)
    for tap, feature in actual.items():
        assert torch.equal(feature, expected[tap])
        assert not torch.allclose(feature, running[tap])
    assert all(torch.equal(feature, running[tap]) for tap, feature in features(teacher).items())


def test_no_buffer_changes_and_every_module_comes_back_as_it_was():
    teacher = network(seed=1).eval()
    teacher.decoder.fuse.norm.train()  # a mode of its own
    buffers = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    modes = [module.training for module in teacher.modules()]
    with pytest.raises(ValueError, match="batch of one image"), batch_statistics(teacher):
        teacher(pixel_values=IMAGES[:1])  # after the backbone's batch norms have worked
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in teacher.named_buffers())
    assert [module.training for module in teacher.modules()] == modes
    assert all(module.track_running_stats for module in teacher.modules() if isinstance(module, nn.BatchNorm2d))


def test_networks_without_batch_norms_stay_as_they_are():
    layer = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)).eval()
    expected = layer(IMAGES)
    with batch_statistics(layer):
        assert torch.equal(layer(IMAGES), expected)


def in_training(run):
    return run._teacher_features(IMAGES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_teacher_of_its_own_dtype_computes_in_it_whatever_the_students_autocast(dtype, tmp_path):
    alone = network(width=12, seed=1).eval().to(getattr(torch, dtype))
    with torch.no_grad():
        expected = alone(pixel_values=IMAGES.to(alone.dtype), output_features=True).features
    teacher = network(width=12, seed=1)
    run = trainer(tmp_path, teacher=teacher, method="attnfd", teacher_dtype=dtype, bf16=True)
    run.train()
    assert same(weights(teacher), weights(alone))  # the buffers too
    assert teacher.dtype == alone.dtype
    for tap, feature in in_training(run).items():
        assert torch.equal(feature, expected[tap])
    assert all(torch.isfinite(value).all() for value in weights(run.model).values())


def test_an_automatic_teacher_stays_as_it_was_loaded_and_follows_autocast(tmp_path):
    single = trainer(tmp_path, method="kd", teacher=network(width=12, seed=1), bf16=True)
    with torch.no_grad():
        logits = single.teacher(pixel_values=IMAGES).logits, features(network(width=12, seed=1).eval())["logits"]
    assert not torch.equal(in_training(single)["logits"], logits[1])
    half = network(width=12, seed=1).bfloat16()
    run = trainer(tmp_path, method="kd", teacher=half)
    run.train()
    assert half.dtype == torch.bfloat16
    assert in_training(run)["logits"].dtype == torch.bfloat16
    assert run.model.student.dtype == torch.float32


def test_a_foreign_teacher_has_its_dtype_too(tmp_path):
    run = trainer(tmp_path, method="kd", teacher=build(segformer), teacher_dtype="bfloat16")
    run.train()
    assert in_training(run)["logits"].dtype == torch.bfloat16


@pytest.mark.parametrize("preset", ["default", "official"])
def test_teacher_batch_norm_overrides_what_the_method_asks_for(preset, tmp_path):
    teacher = network(width=12, seed=1)
    before = weights(teacher)
    seen, raw = {}, {}
    for mode in ("auto", "eval", "batch_stats"):
        options = {"method": "ofd", "method_kwargs": {"preset": preset}, "teacher_batch_norm": mode, "max_steps": 1}
        run = trainer(tmp_path, teacher=teacher, **options)
        run.train()
        run.evaluate()
        seen[mode] = in_training(run)["decoder_pre"]
        raw[mode] = run.state.log_history[0]["raw_ofd"]
        assert all(not margin.estimated for margin in run.model.loss.margins)  # the teacher's norms are known
        assert same(weights(teacher), before)
        assert not any(module.training for module in teacher.modules())
    assert torch.equal(seen["auto"], seen["batch_stats" if preset == "official" else "eval"])
    assert not torch.allclose(seen["eval"], seen["batch_stats"])
    assert raw["eval"] != pytest.approx(raw["batch_stats"], rel=0.1)


def test_methods_that_differ_about_the_teachers_batch_norms_leave_it_to_the_argument(tmp_path):
    options = {"method": "ofd,kd", "max_steps": 1}
    options["method_kwargs"] = {"ofd": {"preset": "official", "divide_by_batch": False, "connector_epochs": 0}}
    with pytest.raises(ValueError, match="Set teacher_batch_norm"):
        trainer(tmp_path, **options)
    for mode in ("eval", "batch_stats"):
        trainer(tmp_path, teacher_batch_norm=mode, **options).train()


def test_wrong_settings_of_the_teacher_are_refused(tmp_path):
    with pytest.raises(ValueError, match="teacher_dtype is one of auto, float32, bfloat16, float16; got 'half'"):
        arguments(tmp_path, teacher_dtype="half")
    with pytest.raises(ValueError, match="teacher_batch_norm is one of auto, eval, batch_stats; got 'train'"):
        arguments(tmp_path, teacher_batch_norm="train")
    with pytest.raises(ValueError, match="the teacher has no batch norm"):
        takes_batch_statistics(nn.Conv2d(3, 4, 1), "batch_stats", False)


def test_a_method_that_wants_batch_statistics_of_a_teacher_without_batch_norms_is_told(caplog):
    for wanted, told in ((False, False), (True, True), (None, True)):
        caplog.clear()
        assert not takes_batch_statistics(nn.Conv2d(3, 4, 1), "auto", wanted)
        assert ("and the teacher has none" in caplog.text) == told
