import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_commands import BASE, STUDENT

from hf_segkd.commands import compare
from hf_segkd.commands.command_line import flags_of, given_flags, parse_arguments
from hf_segkd.commands.compare import ComparisonCommand, make_plan
from hf_segkd.commands.comparison_plan import read_methods, steps_in_the_time
from hf_segkd.commands.train import TrainingCommand
from hf_segkd.training.arguments import DistillationArguments

CONFIG = {**BASE, "student_config": STUDENT, "methods": ["cwd", "attnfd,cwd"], "teacher": "someone/teacher"}


def plan_of(tmp_path, *flags, **values):
    """The plan of a recipe and flags."""
    config = {key: value for key, value in {**CONFIG, "output_dir": str(tmp_path / "all"), **values}.items() if value}
    (tmp_path / "compare.yaml").write_text(json.dumps(config))
    args = ["--config", str(tmp_path / "compare.yaml"), *flags]
    command, training, _ = parse_arguments(ComparisonCommand, TrainingCommand, DistillationArguments, args=args)
    return make_plan(command, training, given_flags(TrainingCommand, DistillationArguments, args=args))


def recipe(run):
    (flag, file) = run.flags
    assert flag == "--config"
    return json.loads(open(file).read())


def test_the_example_of_the_documentation_is_a_plan(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    (example,) = re.findall(r"^```yaml\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    values = {**yaml.safe_load(example), "output_dir": str(tmp_path / "all")}
    (tmp_path / "compare.yaml").write_text(json.dumps(values))
    args = ["--config", str(tmp_path / "compare.yaml")]
    command, training, _ = parse_arguments(ComparisonCommand, TrainingCommand, DistillationArguments, args=args)
    plan = make_plan(command, training, given_flags(TrainingCommand, DistillationArguments, args=args))
    assert [method.name for method in plan.methods] == ["none", "kd", "attnfd,cwd", "hint cosine"]
    assert recipe(plan.teacher_run())["pretrained_backbone"] == "IMAGENET1K_V1"
    assert "pretrained_backbone" not in recipe(plan.student_run(plan.methods[1], 0))


def test_methods_are_names_or_objects_and_the_student_alone_is_the_first_once():
    entries = ["cwd", "none", '{"method": "attnfd,cwd", "name": "both", "method_kwargs": {"cwd": {"weight": 5}}}']
    none, cwd, both = read_methods(entries)
    assert (none.name, none.flags) == ("none", {"method": "none"})
    assert (cwd.name, cwd.folder, cwd.flags) == ("cwd", "cwd", {"method": "cwd"})
    assert (both.name, both.flags) == ("both", {"method": "attnfd,cwd", "method_kwargs": {"cwd": {"weight": 5}}})
    assert read_methods(["attnfd,cwd"])[1].folder == "attnfd+cwd"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("cwdd", r"no method 'cwdd'\. Did you mean 'cwd'"),
        ("kd,attnf", "no method 'attnf'. Did you mean 'attnfd'"),
        ('{"method": "kd"', "is not a JSON object"),
        ('{"name": "kd"}', "has no method"),
        ('{"method": "kd", "learning_rate": 1}', "kd has learning_rate, which would be another protocol"),
        ('{"method": "cwd", "method_kwargs": {"weight": 1}}', "Two of the methods are called 'cwd'.*name of its own"),
    ],
)
def test_methods_that_mean_nothing_are_refused(entry, told):
    with pytest.raises(ValueError, match=told):
        read_methods(["cwd", entry])


def test_runs_of_a_seed_differ_in_method_alone_and_the_student_alone_has_no_teacher(tmp_path):
    plan = plan_of(tmp_path, "--seeds", "3", "--class_map", "names", "--learning_rate", "0.5")
    none, cwd, both = (recipe(plan.student_run(method, 3)) for method in plan.methods)
    assert cwd | {"method": "attnfd,cwd"} == both
    assert (cwd["teacher"], cwd["class_map"]) == ("someone/teacher", "names")
    assert {key: value for key, value in cwd.items() if key not in ("teacher", "class_map")} | {
        "method": "none"
    } == none
    assert (none["seed"], none["learning_rate"], none["max_steps"]) == (3, 0.5, 2)
    # An interrupted run goes on, whatever the recipe, and there is a curve.
    assert (none["save_strategy"], none["save_steps"], none["eval_strategy"]) == ("steps", 0.1, "steps")
    assert recipe(plan.student_run(plan.methods[1], 3, steps=7)) == cwd | {"max_steps": 7}
    assert plan.student_run(plan.methods[2], 3).output_dir == tmp_path / "all" / "attnfd+cwd-seed3"
    assert plan.teacher_run() is None


def test_a_teacher_that_is_trained_has_the_protocol_of_the_students_but_for_its_own_flags(tmp_path):
    own = {"student_config": {"backbone": "resnet18"}, "max_steps": 50, "pretrained_backbone": None}
    plan = plan_of(tmp_path, "--teacher_flags", json.dumps(own), teacher=None, unlabelled_dir="more")
    run = plan.teacher_run()
    flags = recipe(run)
    assert (run.script, run.output_dir) == ("train", tmp_path / "all" / "teacher")
    assert flags["student_config"] == {"backbone": "resnet18"}
    assert (flags["max_steps"], flags["method"], flags["image_size"]) == (50, "none", BASE["image_size"])
    assert not {"teacher", "unlabelled_dir"} & flags.keys()
    assert recipe(plan.student_run(plan.methods[1], 0))["teacher"] == str(tmp_path / "all" / "teacher")


def test_a_recipe_of_one_method_is_compared_with_the_student_alone(tmp_path):
    plan = plan_of(tmp_path, methods=None, method="cwd", method_kwargs={"weight": 2})
    assert [method.flags for method in plan.methods] == [
        {"method": "none"},
        {"method": "cwd", "method_kwargs": {"weight": 2}},
    ]
    assert [method.name for method in plan_of(tmp_path, method="kd").methods] == ["none", "cwd", "attnfd,cwd"]


@pytest.mark.parametrize(
    ("flags", "values", "told"),
    [
        (["--seed", "1"], {}, "--seed is set for each run here. Instead of it there is --seeds"),
        (["--resume_from_checkpoint", "last"], {}, "interrupted runs go on by themselves"),
        (["--equal", "tme"], {}, "--equal is 'tme'; it must be one of steps, time, dearest. Did you mean 'time'"),
        (["--seeds", "1", "1"], {}, r"one or more different numbers, got \[1, 1\]"),
        ([], {"output_dir": None}, "--output_dir is missing"),
        ([], {"teacher": None}, "either --teacher .* or --teacher_flags"),
        (["--teacher_flags", "{}"], {}, "either --teacher .* or --teacher_flags"),
        (["--method_kwargs", "{}"], {}, "does not say whose they are"),
        ([], {"methods": None}, "no method to compare with the student alone"),
        ([], {"methods": ["none"]}, "no method to compare with the student alone"),
        (["--unlabelled_dir", "more"], {"max_steps": None}, "Give --max_steps"),
    ],
)
def test_flags_that_contradict_each_other_or_are_missing_are_refused(tmp_path, flags, values, told):
    with pytest.raises(ValueError, match=told):
        plan_of(tmp_path, *flags, **values)


def test_a_misspelt_flag_of_the_teacher_is_refused_before_anything_runs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        plan_of(tmp_path, "--teacher_flags", '{"max_stepz": 5}', teacher=None)
    assert "unknown flag --max_stepz=5. Did you mean 'max_steps'" in capsys.readouterr().err


def test_a_folder_takes_more_methods_and_seeds_and_what_has_no_bearing_on_scores(tmp_path):
    plan_of(tmp_path).claim_folder()
    plan_of(tmp_path, "--seeds", "7", methods=["kd"], dataloader_num_workers=2, logging_steps=5).claim_folder()
    written = json.loads((tmp_path / "all" / "protocol.json").read_text())
    assert list(written["methods"]) == ["none", "cwd", "attnfd,cwd", "kd"]


@pytest.mark.parametrize(
    ("flags", "values", "told"),
    [
        (["--learning_rate", "0.5"], {}, r"\n- learning_rate: not given, now 0.5\n"),
        ([], {"max_steps": 3}, "max_steps: 2, now 3"),
        ([], {"student_config": {**STUDENT, "aspp_channels": 9}}, r"student_config: \{.*8\}, now \{.*9"),
        (["--equal", "time"], {}, 'equal: "steps", now "time"'),
        (["--test_split", "val"], {}, 'test_split: "test", now "val"'),
        (["--teacher", "other/teacher"], {}, 'teacher: "someone/teacher", now "other/teacher"'),
        (
            [],
            {"methods": ['{"method": "cwd", "method_kwargs": {"weight": 1}}']},
            r'cwd: \{"method": "cwd"\}, now .*: 1',
        ),
    ],
)
def test_a_folder_of_another_protocol_is_refused_by_name_of_what_differs(tmp_path, flags, values, told):
    plan_of(tmp_path).claim_folder()
    with pytest.raises(ValueError, match=told) as error:
        plan_of(tmp_path, *flags, **values).claim_folder()
    assert str(error.value).count("\n- ") == 1


def test_a_teacher_whose_weights_changed_is_another_protocol(tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "model.safetensors").write_bytes(b"old")
    plan_of(tmp_path, teacher=str(teacher)).claim_folder()
    (teacher / "model.safetensors").write_bytes(b"new")
    with pytest.raises(ValueError, match="SHA-256 of the teacher's weights"):
        plan_of(tmp_path, teacher=str(teacher)).claim_folder()


def test_a_folder_of_other_runs_is_refused(tmp_path):
    (tmp_path / "all" / "kd-seed0").mkdir(parents=True)
    (tmp_path / "all" / "kd-seed0" / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match="runs that hf-segkd compare did not make"):
        plan_of(tmp_path).claim_folder()


@pytest.mark.parametrize(
    ("step_seconds", "of_reference", "steps"), [(0.2, 0.1, 50), (0.3, 0.1, 33), (0.1, 0.1, 100), (0.1, 0.3, 300)]
)
def test_steps_that_fit_in_the_time_of_the_reference(step_seconds, of_reference, steps):
    assert steps_in_the_time(100, step_seconds, of_reference) == pytest.approx(steps, abs=1)
    assert steps_in_the_time(100, step_seconds, of_reference) * step_seconds <= 100 * of_reference * (1 + 1e-9)
    assert steps_in_the_time(1, 50.0, 0.1) == 1


def test_what_a_folder_holds_is_found_once_for_all_runs(tmp_path, monkeypatch):
    for split in ("train", "val", "test"):
        for kind, pixels in (("images", np.zeros((8, 8, 3))), ("masks", 255 * np.eye(8))):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / split / kind / "a.png")
    plan_of(tmp_path, dataset="folder", data_dir=str(tmp_path / "data"), dataset_options=None)
    plans = []

    def stop(plan):
        plans.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(compare.Plan, "claim_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        compare.main(["--config", str(tmp_path / "compare.yaml")])
    found = {"classes": ["background", "foreground"], "ids": {"0": 0, "255": 1}}
    assert recipe(plans[0].student_run(plans[0].methods[1], 0))["dataset_options"] == found
    assert plans[0].protocol()["dataset_options"] == found


def test_a_split_to_score_that_is_not_there_is_told_with_its_flag(tmp_path):
    plan_of(tmp_path)
    with pytest.raises(ValueError, match=r"--test_split nowhere, which is scored at the end: .* no split 'nowhere'"):
        compare.main(["--config", str(tmp_path / "compare.yaml"), "--test_split", "nowhere"])
    assert not (tmp_path / "all" / "protocol.json").exists()


def test_flags_that_are_given_are_told_from_those_that_are_not(tmp_path):
    (tmp_path / "a.yaml").write_text("dataset: demo\nmethods: [cwd, {method: kd}]\nlearning_rate: 1e-3\nbf16: null\n")
    args = ["--config", str(tmp_path / "a.yaml"), "--image_size", "8", "9", "--no_check_data", "--learning_rate=0.5"]
    given = given_flags(TrainingCommand, DistillationArguments, args=args)
    assert given == {"dataset": "demo", "image_size": [8, 9], "check_data": False, "learning_rate": 0.5}
    (command,) = parse_arguments(compare.ComparisonCommand, args=flags_of({"methods": ["cwd", {"method": "kd"}]}))
    assert command.methods == ["cwd", '{"method": "kd"}']
