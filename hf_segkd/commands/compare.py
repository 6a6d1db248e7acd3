"""`hf-segkd compare`: trains a student with several methods under one protocol, and writes tables and plots."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_segkd.commands import evaluate, weight_search
from hf_segkd.commands.command_line import flags_of, given_flags, parse_arguments
from hf_segkd.commands.comparison_picture import draw_picture
from hf_segkd.commands.comparison_plan import BASELINE, SET_HERE, TRIAL_STEPS, Plan, read_methods, steps_in_the_time
from hf_segkd.commands.live_table import LiveTable
from hf_segkd.commands.study import Run, alone_in, run_all, threads_of, visible_gpus
from hf_segkd.commands.train import TrainingCommand
from hf_segkd.commands.weight_search import Search, check_trials, refuse_other_weights, search_weights
from hf_segkd.data.folder import with_found_classes
from hf_segkd.evaluation import comparison_plots
from hf_segkd.evaluation.comparison_tables import Result, gains_over, markdown, rows_of, verdict, write_tables
from hf_segkd.evaluation.image_counts import read_image_counts
from hf_segkd.evaluation.reports import read_json
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.publishing.comparisons import check_comparable
from hf_segkd.suggestions import did_you_mean
from hf_segkd.training.arguments import DistillationArguments, json_object

EQUAL = {
    "steps": "Equal steps: each method takes those of the recipe.",
    "time": "Equal time: each method takes as many steps as fit in the time of the student alone.",
    "dearest": "Equal time: each method, and the student alone, takes as many steps as fit in the time of the dearest.",
}


@dataclass(kw_only=True)
class ComparisonCommand:
    """Flags: what is compared. The rest are those of hf-segkd distill, for all runs."""

    methods: list[str] | None = field(
        default=None,
        metadata={
            "help": "Methods, such as cwd or attnfd,cwd, or JSON objects of method, method_kwargs and name; by default "
            "the recipe's --method. The student alone is always compared too."
        },
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of each method's runs."})
    teacher_flags: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Without --teacher: flags for training one, as a JSON object, beside those of the students or in "
            "their place, such as student_config and num_train_epochs."
        },
    )
    test_split: str = field(
        default="test", metadata={"help": "Split that is scored at the end; may be that of --eval_split."}
    )
    equal: str = field(
        default="steps",
        metadata={"help": "What the methods have equally much of: steps, time (the student's alone) or dearest."},
    )
    weight_trials: int = field(
        default=0,
        metadata={
            "help": "Search each method's weight on the validation split, in so many trials for each; 0 takes the "
            "weights as they are."
        },
    )
    jobs: int | None = field(
        default=None, metadata={"help": "Runs at a time; by default as many as GPUs, or without any processor cores."}
    )


def main(args: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the flags, run what they ask for, and return the table's rows."""
    command, training, arguments = parse_arguments(ComparisonCommand, TrainingCommand, DistillationArguments, args=args)
    shared = given_flags(TrainingCommand, DistillationArguments, args=args)
    if training.dataset == "folder" and training.hub_id is None:  # so that not each run looks for them
        options = with_found_classes(training.data_dir, training.train_split, training.dataset_options)
        training.dataset_options = shared["dataset_options"] = options
    plan = make_plan(command, training, shared)
    test_images = load_test_split(training, plan.test_split)
    with alone_in(plan.folder):
        plan.claim_folder()
        return compare(plan, command, training, arguments, test_images)


def compare(
    plan: Plan,
    command: ComparisonCommand,
    training: TrainingCommand,
    arguments: DistillationArguments,
    test_images: datasets.Dataset,
) -> list[dict[str, Any]]:
    """Run what is not done yet, write tables and plots, print the table and return its rows."""
    jobs = command.jobs or len(visible_gpus()) or os.cpu_count() or 1
    evaluation = evaluation_flags(training, arguments, plan.test_split)
    if plan.teacher_flags is None:
        teacher_result(plan, training, evaluation)  # an error shows now; the scores are kept
    runs, step_seconds, searches = run_everything(plan, jobs)
    of_teacher = teacher_result(plan, training, evaluation)
    results = [
        result_of(name, theirs, step_seconds[name], evaluation, searches.get(name)) for name, theirs in runs.items()
    ]
    baseline, others = results[0], results[1:]
    refuse_other_budgets(baseline, others, plan.equal)
    gains_over(baseline, others)
    rows = rows_of(others, baseline, of_teacher)
    networks = {} if of_teacher is None else {"teacher": [plan.teacher]}
    networks |= {
        result.name: [str(run.output_dir) for run in theirs]
        for result, theirs in zip(results, runs.values(), strict=True)
    }
    pictures = draw_picture(
        plan.folder, test_images, baseline, others, networks, arguments.eval_tile, arguments.eval_overlap
    )
    text = f"{in_words(plan, rows, results, training, arguments, list(searches.values()))}\n- {pictures}"
    write_tables(plan.folder, text, rows, results, plan.protocol())
    comparison_plots.write_plots(plan.folder, baseline, others, of_teacher, plan.test_split)
    print(f"\n{text}\n\nTables (comparison.md, .csv, .json) and plots are in {plan.folder}.")
    return rows


def load_test_split(training: TrainingCommand, split: str) -> datasets.Dataset:
    """The images that are scored at the end, found before hours are spent.

    Raises:
        ValueError: If there are none.
    """
    try:
        return training.load(split)
    except ValueError as error:
        raise ValueError(f"--test_split {split}, which is scored at the end: {error}") from error


def make_plan(command: ComparisonCommand, training: TrainingCommand, given: dict[str, Any]) -> Plan:
    """The runs that the flags ask for.

    Raises:
        ValueError: If a flag is one that the comparison sets itself, contradicts another, or is missing.
    """
    for flag, instead in SET_HERE.items():
        if flag in given and flag != "output_dir":
            raise ValueError(f"--{flag} is set for each run here. Instead of it there is {instead}.")
    if command.equal not in EQUAL:
        raise ValueError(
            f"--equal is {command.equal!r}; it must be one of {', '.join(EQUAL)}.{did_you_mean(command.equal, EQUAL)}"
        )
    if not command.seeds or len(set(command.seeds)) < len(command.seeds):
        raise ValueError(f"--seeds takes one or more different numbers, got {command.seeds}.")
    check_trials(command.weight_trials, command.seeds, command.test_split, training.eval_split)
    if "output_dir" not in given:
        raise ValueError("--output_dir is missing: the folder of all runs, tables and plots.")
    if (training.teacher is None) == (command.teacher_flags is None):
        raise ValueError("Give either --teacher (a folder or Hub id) or --teacher_flags (to train one).")
    if training.unlabelled_dir is not None and "max_steps" not in given:
        raise ValueError(
            "With --unlabelled_dir an epoch of a method is longer than one of the student alone. Give --max_steps."
        )
    shared = {key: _as_json(value) for key, value in given.items() if key not in ("output_dir", "teacher")}
    method, kwargs = shared.pop("method", BASELINE), shared.pop("method_kwargs", None)
    if command.methods is None:
        entries = [json.dumps({"method": method} | ({} if kwargs is None else {"method_kwargs": kwargs}))]
    elif kwargs is not None:
        raise ValueError(
            "--method_kwargs beside --methods does not say whose they are. Write them with the method: "
            '{"method": "cwd", "method_kwargs": {"weight": 5}}.'
        )
    else:
        entries = command.methods
    methods = read_methods(entries)
    if len(methods) == 1:
        raise ValueError("There is no method to compare with the student alone: give --methods, such as cwd attnfd.")
    if shared.get("save_strategy") == "no":  # recipes are short of disk; here interrupted runs go on
        del shared["save_strategy"]
    folder = Path(given["output_dir"])
    flags = None if command.teacher_flags is None else json_object(command.teacher_flags, "teacher_flags")
    plan = Plan(
        folder=folder,
        shared=shared,
        methods=methods,
        seeds=command.seeds,
        teacher=training.teacher or str(folder / "teacher"),
        teacher_flags=flags,
        test_split=command.test_split,
        equal=command.equal,
        weight_trials=command.weight_trials,
    )
    if flags is not None:
        parse_arguments(TrainingCommand, DistillationArguments, args=flags_of(plan.flags_of_teacher()))
    return plan


def _as_json(value: Any) -> Any:
    """A flag that holds a JSON object, as what it holds."""
    return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else value


def run_everything(plan: Plan, jobs: int) -> tuple[dict[str, list[Run]], dict[str, float], dict[str, Search]]:
    """Train what is not trained yet, beginning with what needs no teacher; try each method before it is run in full.

    Returns:
        The runs of each method, the baseline's first; the seconds of its step, measured alone; and the trials of its
        weight, where it is searched.
    """
    rows = [(method.name, [f"{method.folder}-seed{seed}" for seed in plan.seeds]) for method in plan.methods]
    teachers = [] if (teacher := plan.teacher_run()) is None else [teacher]
    table = LiveTable([("teacher", ["teacher"]), *rows][1 - len(teachers) :], [f"seed {seed}" for seed in plan.seeds])
    early = [] if plan.equal == "dearest" else plan.student_runs(plan.methods[0])
    run_all([*teachers, *early], jobs, table)
    table.leave()
    seconds = time_of_steps(plan, jobs)
    steps: dict[str, int | None] = dict.fromkeys(seconds)
    methods = {method.name: method for method in plan.methods}
    searches: dict[str, Search] = {}
    if plan.equal != "steps":
        reference = BASELINE if plan.equal == "time" else max(seconds, key=seconds.__getitem__)
        searches |= search_weights(plan, [methods[reference]], steps, jobs)
        methods |= {name: search.method for name, search in searches.items()}
        of_reference = plan.student_runs(methods[reference])
        run_all(of_reference, jobs, table)
        budget = of_reference[0].report().steps
        for name in steps.keys() - {reference}:
            steps[name] = steps_in_the_time(budget, seconds[name], seconds[reference])
    searches |= search_weights(plan, [method for method in plan.methods if method.name not in searches], steps, jobs)
    methods |= {name: search.method for name, search in searches.items()}
    runs = {name: plan.student_runs(method, steps[name]) for name, method in methods.items()}
    # Seed by seed, so that a comparison that is cut short has complete seeds.
    run_all([run for of_seed in zip(*runs.values(), strict=True) for run in of_seed], jobs, table)
    for name, search in searches.items():
        refuse_other_weights(runs[name], search)
    return runs, seconds, searches


def time_of_steps(plan: Plan, jobs: int) -> dict[str, float]:
    """Some steps of each method, alone: seconds of a step, and whether it runs at all."""
    print(f"\nEach method takes {TRIAL_STEPS} steps, one after the other: for the time of a step, and to see it run.")
    trials = {method.name: plan.trial(method) for method in plan.methods}
    for trial in trials.values():
        run_all([trial], jobs=1, threads=threads_of(jobs))
    seconds = {name: trial.report().step_seconds for name, trial in trials.items()}
    # A method does all that the student alone does: where its step seems shorter, that is noise of the machine.
    return {name: max(own, seconds[BASELINE]) for name, own in seconds.items()}


def evaluation_flags(training: TrainingCommand, arguments: DistillationArguments, split: str) -> list[str]:
    """The flags that score a network."""
    data = {name: getattr(training, name) for name in ("dataset", "data_dir", "hub_id", "dataset_options")}
    how = {"batch_size": arguments.per_device_eval_batch_size, "use_cpu": arguments.use_cpu}
    return flags_of({**data, **how, "tile": arguments.eval_tile, "overlap": arguments.eval_overlap, "split": split})


def score(model: str, folder: Path, flags: list[str]) -> tuple[RunReport, np.ndarray]:
    """Scores and confusion matrices of the images; computed once, then read from the folder."""
    report, counts = folder / "test.json", folder / "test_counts.npz"
    if not (report.is_file() and counts.is_file()):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # a bar for each
            evaluate.main(["--model", model, *flags, "--output", str(report), "--image_counts", str(counts)])
    return RunReport.from_json(read_json(report)), read_image_counts(counts)[1]


def result_of(
    name: str, runs: list[Run], step_seconds: float | None, flags: list[str], search: Search | None
) -> Result:
    """The scores of a method's runs."""
    scored = [score(str(run.output_dir), run.output_dir, flags) for run in runs]
    return Result(
        name="student alone" if name == BASELINE else name,
        runs=[run.report() for run in runs],
        scores=[report for report, _ in scored],
        counts=np.stack([counts for _, counts in scored]),
        step_seconds=step_seconds,
        curves=[curve(run.output_dir) for run in runs],
        weight_trials=None if search is None else search.scores,
        weight_factor=None if search is None else search.factor,
    )


def teacher_result(plan: Plan, training: TrainingCommand, flags: list[str]) -> Result | None:
    """The scores of the teacher; None for one of other classes."""
    if training.class_map is not None:
        return None
    report, _ = score(plan.teacher, plan.folder / "teacher", flags)
    reports = [] if (run := plan.teacher_run()) is None else [run.report()]
    return Result("teacher", reports, [report])  # its steps were not timed alone


def curve(folder: Path) -> list[tuple[int, float]]:
    """Steps and mIoU on the validation split of a run, in percent."""
    log = read_json(folder / "trainer_state.json")["log_history"]
    return sorted({entry["step"]: 100 * entry["eval_mean_iou"] for entry in log if "eval_mean_iou" in entry}.items())


def refuse_other_budgets(baseline: Result, results: list[Result], equal: str) -> None:
    """Make sure that each run has the network, data and, unless the time is equal, the steps of its baseline.

    Raises:
        ValueError: If one has not; see `check_comparable`.
    """
    plain = {run.seed: run for run in baseline.runs}
    for result in results:
        for run in result.runs:
            pair = [run, plain[run.seed]] if run.seed in plain else [run]
            if equal != "steps":
                pair = [report.extended(steps=None) for report in pair]
            check_comparable(pair[0], runs=[], baseline_runs=pair[1:], teacher=None)


def in_words(
    plan: Plan,
    rows: list[dict[str, Any]],
    results: list[Result],
    training: TrainingCommand,
    arguments: DistillationArguments,
    searches: list[Search],
) -> str:
    """The table, with what it is of."""
    selection = "best step on the validation split" if arguments.load_best_model_at_end else "last step, no selection"
    scored, run = results[0].scores[0], results[0].runs[0]
    validation = None if plan.test_split == training.eval_split else run.split
    weights = "weights as searched below" if searches else "no weights were searched"
    head = (
        f"{scored.dataset}, {scored.num_images} images of the split {scored.split}, {len(scored.classes)} classes; "
        f"seeds {', '.join(map(str, plan.seeds))}: mean ± std. {EQUAL[plan.equal]} Batch {run.batch_size}, "
        f"{selection}; {weights}. Gains are points of mIoU over the student alone with the same seeds "
        "and images; their intervals are a bootstrap's over both. Minutes are steps times the time of a step alone."
    )
    trials = f"{weight_search.in_words(searches, training.eval_split)}\n\n" if searches else ""
    return f"{head}\n\n{markdown(rows, scored.split, validation)}\n\n{trials}{verdict(results[1:])}"
