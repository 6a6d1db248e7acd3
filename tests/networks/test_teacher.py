import copy

import pytest
import torch
from accelerate import Accelerator
from foreign_models import build, segformer
from tiny_runs import arguments, network, same, trainer, weights, without_batch_coupling
from torch import nn

from hf_segkd.networks.class_map import ClassMap
from hf_segkd.networks.teacher import Teacher, batch_statistics

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


def everything_in(model):
    """All that a module can carry, but for its mode and what it requires gradients of."""
    parts = {}
    for name, module in model.named_modules():
        values = vars(module).items()
        hooks = {attribute: dict(value) for attribute, value in values if attribute.endswith("_hooks") and value}
        parts[name] = (module, set(vars(module)), hooks)
    return parts, [id(value) for value in model.parameters()], [value.dtype for value in model.state_dict().values()]


@pytest.mark.parametrize(
    "make", [lambda: network(width=12, seed=1), lambda: build(segformer, seed=1)], ids=["own", "segformer"]
)
def test_three_trainers_leave_one_teacher_as_it_was_but_frozen_and_in_evaluation_mode(make, tmp_path):
    teacher = make().train()
    teacher(pixel_values=IMAGES)  # models of transformers give themselves hooks when they first run
    before, values = everything_in(teacher), weights(teacher)
    for options in ({}, {"bf16": True}, {"teacher_dtype": "bfloat16", "channels_last": True}):
        run = trainer(tmp_path, teacher=teacher, method="kd", max_steps=2, **options)
        run.train()
        run.evaluate()
        assert everything_in(teacher) == before
        assert same(weights(teacher), values)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_teacher_of_another_dtype_is_a_copy_and_the_network_stays_as_it_was():
    given = network(width=12, seed=1).train()
    teacher = Teacher(given, dtype="bfloat16")
    assert given.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in given.parameters())
    assert given.training
    assert teacher.network.dtype == torch.bfloat16
    assert teacher.network is not given
    assert Teacher(given, dtype="float32").network is given


def test_by_itself_a_teacher_answers_in_its_own_classes():
    alone = network(width=12, seed=1).eval()
    teacher = Teacher(alone)
    assert teacher.classes.is_identity
    assert teacher.spec.channels == alone.tap_channels
    assert all(torch.equal(feature, features(alone)[tap]) for tap, feature in teacher.features(IMAGES).items())


@pytest.mark.parametrize("wanted", [True, False])
def test_its_features_have_no_gradients_and_are_of_the_batch_where_the_method_wants_it(wanted):
    alone = network(width=12, seed=1).eval()
    teacher = Teacher(alone)
    teacher.prepare(Accelerator(cpu=True), batch_statistics=wanted)
    with batch_statistics(alone) if wanted else torch.no_grad():
        expected = features(alone)
    for tap, feature in teacher.features(IMAGES).items():
        assert torch.equal(feature, expected[tap])
        assert not feature.requires_grad


def test_the_losses_are_told_of_the_common_classes():
    student, labels = network(), ["a", "b", "c", "d", "e"]
    given = network(width=12, seed=1, id2label=dict(enumerate(labels)))
    class_map = ClassMap([0, 0, 2, None, 3], labels, list(student.config.id2label.values()))
    teacher = Teacher(given, class_map=class_map, student=student)
    assert (teacher.spec.num_labels, teacher.spec.channels["logits"]) == (3, 3)
    assert teacher.features(IMAGES)["logits"].shape[1] == 3
    assert teacher(IMAGES).logits.shape[1] == 4
    assert teacher.spec.norms.keys() == given.tap_norms.keys()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_teacher_of_its_own_dtype_computes_in_it_whatever_the_students_autocast(dtype, tmp_path):
    alone = network(width=12, seed=1).eval().to(getattr(torch, dtype))
    with torch.no_grad():
        expected = alone(pixel_values=IMAGES.to(alone.dtype), output_features=True).features
    teacher = network(width=12, seed=1)
    run = trainer(tmp_path, teacher=teacher, method="attnfd", teacher_dtype=dtype, bf16=True)
    run.train()
    assert same(weights(run.teacher.network), weights(alone))  # the buffers too
    assert run.teacher.dtype == alone.dtype
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
    with pytest.raises(
        ValueError, match="teacher_dtype is one of auto, fastest, float32, bfloat16, float16; got 'half'"
    ):
        arguments(tmp_path, teacher_dtype="half")
    with pytest.raises(ValueError, match="teacher_batch_norm is one of auto, eval, batch_stats; got 'train'"):
        arguments(tmp_path, teacher_batch_norm="train")
    without = without_batch_coupling(network(width=12, seed=1))
    with pytest.raises(ValueError, match="the teacher has no batch norm"):
        trainer(tmp_path, teacher=without, method="kd", teacher_batch_norm="batch_stats")


def test_a_method_that_wants_batch_statistics_of_a_teacher_without_batch_norms_is_told(caplog):
    teacher = Teacher(without_batch_coupling(network(width=12, seed=1)))
    expected = features(teacher.network)
    for wanted, told in ((False, False), (True, True), (None, True)):
        caplog.clear()
        teacher.prepare(Accelerator(cpu=True), batch_statistics=wanted)
        assert all(torch.equal(feature, expected[tap]) for tap, feature in teacher.features(IMAGES).items())
        assert ("and the teacher has none" in caplog.text) == told
