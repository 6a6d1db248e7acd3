"""The teacher/student pairs of the papers' tables: at full size their counts, as tiny versions a step of training."""

import itertools
import math

import pytest
import torch
from test_recipes import build, named, tiny
from tiny_runs import scenes, trainer, weights

from hf_segkd.data import label_info
from hf_segkd.losses import LOSSES, create_loss
from hf_segkd.training.distiller import network_spec

MMSEG = {"layout": "mmsegmentation"}
PSPNET, HRNET, ISANET = ({"model_type": f"segkd-{kind}"} for kind in ("pspnet", "hrnet", "isanet"))
ATTNFD_MOBILENET = {"backbone": "mobilenet_v2", "pad_before_expansion": True, "late_dilation": True}
# Name -> classes, then config and number of parameters (in training) of teacher and student. AttnFD (arXiv 2403.05451),
# Tables 1 and 2; FAKD (arXiv 2208.14143), Tables 1 to 3, whose networks are mmsegmentation's.
PAIRS = {
    "attnfd_resnet18": (21, ({"backbone": "resnet101"}, 59_344_309), ({"backbone": "resnet18"}, 16_608_181)),
    "attnfd_mobilenet_v2": (21, ({"backbone": "resnet101"}, 59_344_309), (ATTNFD_MOBILENET, 5_816_053)),
    "fakd_pspnet_resnet18": (
        19,
        ({**PSPNET, "backbone": "resnet101"}, 67_967_622),
        ({**PSPNET, "backbone": "resnet18"}, 12_790_086),
    ),
    "fakd_hrnet_w18_small": (
        19,
        ({**HRNET, "backbone": "hrnet_w48"}, 65_858_659),
        ({**HRNET, "backbone": "hrnet_w18_small"}, 3_939_309),
    ),
    "fakd_mobilenet_v2": (
        19,
        ({**MMSEG, "backbone": "resnet101"}, 62_582_006),
        ({**MMSEG, "backbone": "mobilenet_v2"}, 15_244_374),
    ),
    "fakd_isanet_resnet18": (
        19,
        ({**ISANET, "backbone": "resnet101"}, 56_699_526),
        ({**ISANET, "backbone": "resnet18"}, 12_086_598),
    ),
}
QUICK = ("attnfd", "fakd_cwd", "cwd", "cirkd", "ofd")
every_pair = pytest.mark.parametrize("pair", PAIRS)
every_method = pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in LOSSES]
)


@every_pair
def test_networks_have_as_many_parameters_as_the_originals(pair):
    num_labels, *networks = PAIRS[pair]
    with torch.device("meta"):
        for config, parameters in networks:
            assert build(config, num_labels=num_labels).num_parameters() == parameters


@every_pair
def test_the_losses_build_at_full_size_and_on_the_tables_largest_label_set(pair):
    _, (teacher, _), (student, _) = PAIRS[pair]
    with torch.device("meta"):
        specs = [network_spec(build(config, num_labels=150)) for config in (student, teacher)]
        for method in LOSSES:
            assert create_loss(method, *specs).weights


@every_pair
def test_attnfd_and_ofd_compare_the_encoders_of_networks_that_have_one(pair, caplog):
    _, (teacher, _), (student, _) = PAIRS[pair]
    with torch.device("meta"):
        specs = [network_spec(build(config, num_labels=19)) for config in (student, teacher)]
    has_encoder = pair not in ("fakd_pspnet_resnet18", "fakd_isanet_resnet18")
    encoders = {"attnfd": ("encoder",), "ofd": ("encoder_pre",)}
    for method, (encoder,) in encoders.items():
        taps = create_loss(method, *specs).student_taps
        assert taps[-1] == encoder.replace("encoder", "decoder")
        assert (encoder in taps) == has_encoder
    assert ("so encoder is left out" in caplog.text) != has_encoder
    assert {"low_level_pre", "decoder_pre"} <= set(create_loss("attnfd", *specs, preset="paper").student_taps)
    if not has_encoder:
        with pytest.raises(ValueError, match=r"attnfd reads the student's \['encoder'\]"):
            create_loss("attnfd", *specs, places=["encoder"])


@every_method
@every_pair
def test_a_step_of_distillation_moves_every_weight_of_the_student_and_none_of_the_teacher(pair, method, tmp_path):
    _, (teacher_config, _), (student_config, _) = PAIRS[pair]
    names = named(label_info(scenes(num_images=1)))
    torch.manual_seed(0)
    student, teacher = (build(tiny(config), **names) for config in (student_config, teacher_config))
    run = trainer(tmp_path, student, teacher, method=method, max_steps=1)
    before, teacher_before = weights(student), weights(teacher)
    run.train()
    step = run.state.log_history[0]
    assert any(name.startswith("raw_") and name != "raw_ce" for name in step)
    assert all(math.isfinite(value) for value in step.values())
    after = weights(student)
    assert [name for name, _ in student.named_parameters() if before[name].equal(after[name])] == []
    assert all(teacher_before[name].equal(value) for name, value in weights(teacher).items())


def test_every_method_is_built_for_any_student_and_teacher_of_the_tables():
    with torch.device("meta"):
        sides = zip(*((student[0], teacher[0]) for _, teacher, student in PAIRS.values()), strict=True)
        students, teachers = (
            [network_spec(build(tiny(config), num_labels=5)) for config in configs] for configs in sides
        )
        for method, student, teacher in itertools.product(LOSSES, students, teachers):
            assert create_loss(method, student, teacher).weights
