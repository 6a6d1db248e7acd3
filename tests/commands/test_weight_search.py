import json
from dataclasses import replace

import pytest

from hf_segkd.commands import compare, weight_search
from hf_segkd.commands.comparison_plan import Method, Plan
from hf_segkd.commands.study import Run
from hf_segkd.commands.weight_search import SEARCH_SEED, best_factor, check_trials, factors, search_weights, weighed
from hf_segkd.evaluation.comparison_tables import Result, markdown, rows_of
from hf_segkd.evaluation.run_report import RunReport

SECONDS = {"none": 0.2, "cwd": 0.4, "at": 0.8}
# mIoU on the validation split of a method with a weight.
SCORES = {("cwd", 0.3): 0.31, ("cwd", 1): 0.30, ("cwd", 3): 0.25, ("at", 1): 0.2, ("at", 3): 0.2}


@pytest.fixture
def plan(tmp_path):
    methods = [Method("none", {"method": "none"}), Method("cwd", {"method": "cwd"}), Method("at", {"method": "at"})]
    return Plan(tmp_path, {"max_steps": 100}, methods, [0, 1], "teacher", None, "test", "steps", weight_trials=3)


@pytest.fixture
def made(monkeypatch):
    """Runs take no time and score as `SCORES` says; the recipe of each, in their order. `at` diverges with 0.3."""
    recipes = {}

    def run_all(runs, jobs, table=None, threads=None):
        for run in runs:
            if run.is_done:
                continue
            flags = json.loads((run.output_dir / "recipe.yaml").read_text())
            recipes[run.output_dir.name] = flags
            if (flags["method"], flags.get("distillation_weight")) == ("at", 0.3):
                (run.output_dir / "nonfinite-step-7").mkdir()
                continue
            score = SCORES.get((flags["method"], flags.get("distillation_weight")), 0.1)
            report = {"steps": flags["max_steps"], "step_seconds": SECONDS[flags["method"]], "mean_iou": score}
            run.report_file.write_text(json.dumps(report))
            (run.output_dir / "training_args.json").write_text(json.dumps(flags))

    monkeypatch.setattr(compare, "run_all", run_all)
    monkeypatch.setattr(weight_search, "run_all", run_all)
    return recipes


def test_more_trials_add_factors_outside_and_the_papers_weight_is_always_one():
    assert [factors(trials) for trials in (2, 3, 5)] == [[0.3, 1], [0.3, 1, 3], [0.1, 0.3, 1, 3, 10]]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({0.3: 31.0, 1.0: 30.0, 3.0: 29.0}, 0.3),
        ({0.3: 30.0, 1.0: 30.0, 3.0: 30.0}, 1.0),
        ({0.1: 5.0, 0.3: 5.0, 1.0: 4.0, 3.0: None, 10.0: 5.0}, 0.3),
    ],
)
def test_the_highest_score_chooses_and_of_equal_ones_the_nearest_to_1(scores, best):
    assert best_factor(scores) == best


def test_trials_without_any_score_are_an_error():
    with pytest.raises(ValueError, match=r"None of the trials with the weight times 1, 3 has a score\."):
        best_factor({1.0: None, 3.0: None})


@pytest.mark.parametrize(
    ("trials", "seeds", "splits", "told"),
    [
        (1, [0], ("test", "val"), "0 .no search. or 2 to 9 trials for each method, got 1"),
        (10, [0], ("test", "val"), "got 10"),
        (-1, [0], ("test", "val"), "got -1"),
        (3, [0, SEARCH_SEED], ("test", "val"), "is the seed of the trials"),
        (3, [0], ("val", "val"), "chooses weights by the split val, which is also the one that is scored"),
        (3, [0], ("validation", "val"), "which is also the one that is scored"),
    ],
)
def test_searches_that_would_say_nothing_are_refused(trials, seeds, splits, told):
    with pytest.raises(ValueError, match=told):
        check_trials(trials, seeds, *splits)
    check_trials(0, seeds, *splits)


def test_a_weight_of_ones_own_is_multiplied():
    method = Method("cwd", {"method": "cwd", "method_kwargs": {"weight": 5}, "distillation_weight": 2.0})
    assert weighed(method, 0.3).flags == {**method.flags, "distillation_weight": 0.6}
    assert weighed(Method("cwd", {"method": "cwd"}), 1.0).flags["distillation_weight"] == 1


def test_each_method_has_the_same_trials_and_its_runs_the_weight_that_the_validation_split_chose(plan, made):
    runs, _, searches = compare.run_everything(plan, jobs=2)
    assert {name: search.scores for name, search in searches.items()} == {
        "cwd": {0.3: 31, 1: 30, 3: 25},
        "at": {0.3: None, 1: 20, 3: 20},
    }
    assert {name: search.factor for name, search in searches.items()} == {"cwd": 0.3, "at": 1}
    trials = [name for name in made if "-x" in name]
    assert trials == ["cwd-x0.3", "cwd-x1", "cwd-x3", "at-x0.3", "at-x1", "at-x3"]
    assert {made[name]["seed"] for name in trials} == {SEARCH_SEED}
    assert {made[name]["max_steps"] for name in trials} == {100}
    assert [made[f"cwd-seed{seed}"]["distillation_weight"] for seed in (0, 1)] == [0.3, 0.3]
    assert made["at-seed0"] == {**made["at-x1"], "seed": 0}
    assert "distillation_weight" not in made["none-seed0"]
    assert runs["cwd"][0].output_dir == plan.folder / "cwd-seed0"
    made.clear()
    assert compare.run_everything(plan, jobs=2)[2] == searches
    assert made == {}  # a trial that diverged is not tried again


@pytest.mark.parametrize(
    ("equal", "steps"),
    [("time", {"none": 100, "cwd": 50, "at": 25}), ("dearest", {"none": 400, "cwd": 200, "at": 100})],
)
def test_trials_have_the_steps_of_the_runs_that_they_choose_for(plan, made, equal, steps):
    compare.run_everything(replace(plan, equal=equal), jobs=2)
    for name in ("cwd", "at"):
        assert made[f"{name}-x1"]["max_steps"] == made[f"{name}-seed0"]["max_steps"] == steps[name]
    assert made["none-seed0"]["max_steps"] == steps["none"]
    if equal == "dearest":
        assert list(made).index("at-x3") < list(made).index("at-seed0") < list(made).index("cwd-x0.3")


def test_runs_with_another_weight_than_the_trials_choose_are_refused(plan, made):
    compare.run_everything(plan, jobs=2)
    (plan.folder / "weights" / "cwd-x0.3" / "evaluation.json").write_text('{"mean_iou": 0.01}')
    with pytest.raises(ValueError, match=r"cwd-seed0 was trained with the distillation_weight 0\.3, .* choose 1:"):
        compare.run_everything(plan, jobs=2)


def test_another_number_of_trials_is_another_protocol_and_none_that_of_folders_without(plan):
    plan.claim_folder()
    with pytest.raises(ValueError, match="weight_trials: 3, now 5"):
        replace(plan, weight_trials=5).claim_folder()
    with pytest.raises(ValueError, match="weight_trials: 3, now not given"):
        replace(plan, weight_trials=0).claim_folder()
    assert replace(plan, weight_trials=0).protocol()["weight_trials"] is None


def test_only_a_run_that_may_diverge_is_done_when_it_has(tmp_path):
    (tmp_path / "nonfinite-step-3").mkdir()
    assert Run("distill", tmp_path, may_diverge=True).is_done
    assert not Run("distill", tmp_path).is_done


def test_the_table_tells_the_factor_and_the_text_the_trials(plan, made):
    searches = [*compare.run_everything(plan, jobs=2)[2].values()]
    text = weight_search.in_words(searches, "val")
    assert "searched in 3 trials for each method" in text
    assert "At the end of the grid, where more trials might go on: cwd." in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    assert rows[0] == ["", "x 0.3", "x 1", "x 3", "chosen"]
    assert rows[2:] == [["cwd", "31.00", "30.00", "25.00", "0.3"], ["at", "diverged", "20.00", "20.00", "1"]]
    report = RunReport(dataset="demo", mean_iou=0.5, mean_accuracy=0.5, overall_accuracy=0.5, seed=0, classes={})
    plain, cwd = Result("student alone", [report], [report]), Result("cwd", [report], [report], weight_factor=0.3)
    table = rows_of([cwd], plain, None)
    assert [row["weight_factor"] for row in table] == [None, 0.3]
    assert "weight times" in markdown(table, "test", "val")
    assert "weight times" not in markdown(table[:1], "test", "val")


def test_the_search_leaves_the_student_alone_and_comparisons_without_trials_as_they_are(plan, made):
    assert search_weights(plan, plan.methods[:1], {"none": None}, jobs=1) == {}
    assert search_weights(replace(plan, weight_trials=0), plan.methods, dict.fromkeys(SECONDS), jobs=1) == {}
    assert made == {}
