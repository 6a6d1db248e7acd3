"""`Plan`: the runs of a comparison, their flags and folders, and how many steps each takes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_segkd.commands.study import Run
from hf_segkd.evaluation.argument_roles import OnCard, OnResume, role_of
from hf_segkd.evaluation.reports import read_json, write_json
from hf_segkd.losses import LOSSES
from hf_segkd.publishing.publication import weights_sha256
from hf_segkd.suggestions import did_you_mean

BASELINE = "none"
PROTOCOL_FILE = "protocol.json"
RECIPE_FILE = "recipe.yaml"
# Flags that mean something only with a teacher.
OF_TEACHER = ("teacher", "teacher_taps", "class_map", "unlabelled_dir", "unlabelled_ratio")
# What the comparison sets itself, and where it comes from.
SET_HERE = {
    "seed": "--seeds",
    "output_dir": "--output_dir, which is the folder of all runs",
    "resume_from_checkpoint": "nothing: interrupted runs go on by themselves",
    "push_to_hub": "nothing: publish a student with hf-segkd publish",
}
# So that an interrupted run goes on, and that there is a curve; shares of all steps.
DEFAULTS: dict[str, Any] = {
    **{"save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 1},
    **{"eval_strategy": "steps", "eval_steps": 0.1},
}
TRIAL_STEPS = 20
OF_TRIAL: dict[str, Any] = {
    **{"max_steps": TRIAL_STEPS, "save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False},
    **{"preflight_images": 0, "max_eval_samples": 1, "seed": 0},
}


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes:
        name: Title of its row.
        flags: Its flags: method, method_kwargs, and others that a baseline has no use for.
    """

    name: str
    flags: dict[str, Any]

    @property
    def folder(self) -> str:
        """Beginning of the names of its folders."""
        return "".join(c if c.isalnum() or c in "._-" else "+" for c in self.name)


def read_methods(entries: list[str]) -> list[Method]:
    """The methods that were asked for, the baseline first, which is always there.

    Args:
        entries: Names, several joined by commas, or JSON objects: method, and with it method_kwargs, a name for the
            table, and other flags that only a method has.

    Raises:
        ValueError: If a method is unknown, an object holds something else, or two entries have one name.
    """
    methods = [Method(BASELINE, {"method": BASELINE})]
    for entry in entries:
        method = _read_method(entry)
        if method.flags["method"] != BASELINE:
            methods.append(method)
    folders = [method.folder for method in methods]
    for method in methods:
        if folders.count(method.folder) > 1:
            raise ValueError(
                f"Two of the methods are called {method.name!r} or are alike in it. Give each a name of its own: "
                f'{{"name": "{method.name} 2", "method": "{method.flags["method"]}", ...}}.'
            )
    return methods


def _read_method(entry: str) -> Method:
    values: Any = {"method": entry}
    if entry.lstrip().startswith("{"):
        try:
            values = json.loads(entry)
        except json.JSONDecodeError as error:
            raise ValueError(f"methods: {entry!r} is not a JSON object: {error}.") from error
    if not isinstance(values.get("method"), str):
        raise ValueError(f"methods: {entry} has no method; write a name, or an object with method and method_kwargs.")
    for part in values["method"].split(","):
        if part.strip() not in (BASELINE, *LOSSES):
            raise ValueError(
                f"methods: there is no method {part.strip()!r}.{did_you_mean(part.strip(), LOSSES)} There are: "
                f"{', '.join(LOSSES)}."
            )
    flags = {key: value for key, value in values.items() if key != "name"}
    for key in flags:
        if key not in ("method", "method_kwargs") and role_of(key).on_card is not OnCard.OF_THE_METHOD:
            raise ValueError(
                f"methods: {values['method']} has {key}, which would be another protocol than that of the other "
                "methods. Of each method's own are name, method, method_kwargs, and what only a teacher's student has, "
                "such as connector_lr_multiplier."
            )
    return Method(str(values.get("name", values["method"])), flags)


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        folder: Folder of everything.
        shared: Flags of all students.
        methods: The methods, the baseline first.
        seeds: Their seeds.
        teacher: Folder or Hub id of the teacher; that of its run where it is trained.
        teacher_flags: What is different where the teacher is trained; None where it is given.
        test_split: The split that is scored.
        equal: `steps`, `time` or `dearest`.
        weight_trials: Trials of the weight search for each method; 0 for none.
    """

    folder: Path
    shared: dict[str, Any]
    methods: list[Method]
    seeds: list[int]
    teacher: str
    teacher_flags: dict[str, Any] | None
    test_split: str
    equal: str
    weight_trials: int = 0

    def teacher_run(self) -> Run | None:
        """The run that trains the teacher; None where it is given."""
        return None if self.teacher_flags is None else self._run("teacher", "train", self.flags_of_teacher())

    def flags_of_teacher(self) -> dict[str, Any]:
        """All flags of the teacher's run: those of the students, without the method, and its own."""
        shared = {key: value for key, value in self.shared.items() if key not in OF_TEACHER}
        return {**DEFAULTS, **shared, "method": BASELINE, **(self.teacher_flags or {})}

    def student_run(self, method: Method, seed: int, steps: int | None = None, folder: str | None = None) -> Run:
        """The run of a method with a seed; by default it takes the steps of the recipe, in the folder of both."""
        budget = {} if steps is None else {"max_steps": steps}
        flags = {**DEFAULTS, **self.flags_of_student(method), **budget, "seed": seed}
        return self._run(folder or f"{method.folder}-seed{seed}", "distill", flags)

    def student_runs(self, method: Method, steps: int | None = None) -> list[Run]:
        """The runs of a method, one for each seed."""
        return [self.student_run(method, seed, steps) for seed in self.seeds]

    def weight_run(self, method: Method, factor: float, seed: int, steps: int | None) -> Run:
        """The run that tries a method with its weight times a factor; `student_run` says what the rest is."""
        run = self.student_run(method, seed, steps, folder=f"weights/{method.folder}-x{factor:g}")
        return replace(run, may_diverge=True)

    def trial(self, method: Method) -> Run:
        """A few steps of a method, for their time, and to see early that it runs."""
        return self._run(f"trials/{method.folder}", "distill", {**self.flags_of_student(method), **OF_TRIAL})

    def flags_of_student(self, method: Method) -> dict[str, Any]:
        """Flags of a method's runs, all but budget and seed."""
        if method.name == BASELINE:
            return {key: value for key, value in self.shared.items() if key not in OF_TEACHER} | method.flags
        return {**self.shared, "teacher": self.teacher, **method.flags}

    def _run(self, name: str, command: str, flags: dict[str, Any]) -> Run:
        """A run, and beside it the recipe that it is started with."""
        folder = self.folder / name
        write_json(flags, folder / RECIPE_FILE)  # JSON is YAML
        return Run(command, folder, ["--config", str(folder / RECIPE_FILE)])

    def protocol(self) -> dict[str, Any]:
        """What all runs of the folder have in common, and the flags of each method."""
        return {
            **_compared(self.shared),
            "teacher": None if self.teacher_flags is not None else self.teacher,
            "SHA-256 of the teacher's weights": weights_sha256(Path(self.teacher))
            if self.teacher_flags is None
            else None,
            "teacher_flags": None if self.teacher_flags is None else _compared(self.teacher_flags),
            "test_split": self.test_split,
            "equal": self.equal,
            "weight_trials": self.weight_trials or None,
        }

    def claim_folder(self) -> None:
        """Make the folder that of this protocol; other methods and seeds may be added to it later.

        Raises:
            ValueError: If it holds runs of another protocol; the message names what differs.
        """
        file, now = self.folder / PROTOCOL_FILE, self.protocol()
        methods = {method.name: method.flags for method in self.methods}
        if not file.is_file():
            if any(self.folder.glob("*-seed*/evaluation.json")):
                raise ValueError(f"{self.folder} holds runs that hf-segkd compare did not make. Choose another folder.")
            write_json({"protocol": now, "methods": methods}, file)
            return
        written = read_json(file)
        then = written["protocol"]
        lines = [
            f"{name}: {_in_words(then.get(name))}, now {_in_words(now.get(name))}"
            for name in dict.fromkeys((*then, *now))
            if then.get(name) != now.get(name)
        ]
        lines += [
            f"{name}: {_in_words(written['methods'][name])}, now {_in_words(flags)}"
            for name, flags in methods.items()
            if written["methods"].get(name, flags) != flags
        ]
        if lines:
            listed = "\n- ".join(lines)
            raise ValueError(
                f"{self.folder} holds runs of another protocol, and scores stand side by side only under one:\n- "
                f"{listed}\nTake these values again, choose another --output_dir, or give a method a name of its own."
            )
        write_json({"protocol": now, "methods": written["methods"] | methods}, file)


def steps_in_the_time(steps: int, step_seconds: float, of_reference: float) -> int:
    """Steps of a method that take as long as the reference's.

    Args:
        steps: Steps of the reference.
        step_seconds: Time of the method's step.
        of_reference: Time of the reference's step.
    """
    return max(1, int(steps * of_reference / step_seconds))


def _compared(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that are part of a protocol: all but those that have no bearing on weights or scores."""
    free = {OnCard.LISTED, OnCard.PRIVATE}
    return {
        name: value
        for name, value in flags.items()
        if value is not None
        and not (role_of(name).on_resume is OnResume.IRRELEVANT and role_of(name).on_card in free)
        and name not in ("teacher", "check_data")
    }


def _in_words(value: Any) -> str:
    return "not given" if value is None else json.dumps(value)[:200]
