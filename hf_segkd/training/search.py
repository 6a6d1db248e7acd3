"""`SearchingTrainer`: makes a new student for each run, and for each trial of a hyperparameter search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from transformers import PreTrainedConfig, Trainer, set_seed

from hf_segkd.evaluation.argument_roles import OnResume, role_of
from hf_segkd.networks import with_taps
from hf_segkd.networks.loading import make_student
from hf_segkd.suggestions import did_you_mean
from hf_segkd.training.argument_values import check_values
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.balance import balance_classes
from hf_segkd.training.distiller import Distiller
from hf_segkd.training.set_up import prepared_distiller, refuse_unusual_weights

# What is set up once, with the trainer or the process.
FIXED = (
    *("accelerator_config", "bf16", "fp16", "full_determinism", "teacher_batch_norm", "teacher_dtype", "tf32"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cpu"),
)


class SearchingTrainer(Trainer):
    """The part of `DistillationTrainer` that begins runs with a new student of `model_init`."""

    def call_model_init(self, trial: Any = None) -> Distiller:
        """A new student of `model_init` with the losses; `train` calls it.

        Args:
            trial: The trial of a hyperparameter search, whose values `args` gets.

        Raises:
            ValueError: If the student is not one that can be trained, or has other classes than the first.
        """
        if trial is not None:
            values = self.hp_space(trial)
            if self._loss is not None and (fixed := values.keys() & {"method", "method_kwargs"}):
                raise ValueError(f"hp_space gives {' and '.join(sorted(fixed))}, and the trainer's loss is your own.")
            apply_trial(self.args, self._before_search, values)
            set_seed(self.args.seed)
        student = super().call_model_init(trial)
        refuse_unusual_weights(student)
        student = with_taps(make_student(student, self._labels, self.processing_class)[0])
        args = copy.copy(self.args)
        if self._loss is not None:
            args.method_kwargs = self._method_kwargs  # without the keywords of a functools.partial
        trains = self.train_dataset is not None
        distiller = prepared_distiller(student, self.teacher, args, self._loss, trains).to(args.device)
        refuse_other_classes(distiller.config, **self._label_range)
        if self.train_dataset is self._made_crops:  # not one that somebody put there since
            self._make_crops(distiller)
        if self.teacher is not None:
            self.teacher.use_statistics(distiller.loss.request.teacher_batch_statistics)
        balance_classes(distiller.label_losses, self.train_dataset, args, self.accelerator)
        self._attach(distiller)
        self._open_teacher_cache(distiller)
        for kept in ("_settings", "_costs"):
            vars(self).pop(kept, None)
        return distiller

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: str | None = "optuna",
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `Trainer` does, with optuna; each trial trains a new student of `model_init` with a new loss.

        A trial may vary arguments that say how a student is trained, also `method`, `method_kwargs` or `crop_size`.
        Afterwards `args` is as before, and the student a new one: set the best values in `args` and train.

        Args:
            hp_space: A function of the trial that gives names and values of training arguments.
            compute_objective: By default `eval_mean_iou`.
            n_trials: Number of trials.
            direction: By default "maximize" for the mean IoU, and "minimize", as in `Trainer`, for another objective.
            backend: "optuna"; no other was tried.
            hp_name: A function of the trial that gives its name, and that of its folder in the output folder.
            **kwargs: Arguments of `optuna.create_study`, and `timeout` and others of `optimize`.

        Returns:
            The best trial: its `objective` and `hyperparameters`.

        Raises:
            ValueError: If there is no `model_init`, the backend is another, several trials shall run at once, or a
                trial varies what it can't.
        """
        refuse_search(self.model_init, backend, kwargs)
        objective = mean_iou_of if compute_objective is None else compute_objective
        if direction is None:
            direction = "maximize" if compute_objective is None else "minimize"
        self._before_search = dict(vars(self.args))
        try:
            return super().hyperparameter_search(hp_space, objective, n_trials, direction, backend, hp_name, **kwargs)
        finally:
            apply_trial(self.args, self._before_search, {})
            self.hp_search_backend = self.hp_name = self._trial = None
            self._train_batch_size = self.args.train_batch_size
            self.model = self.model_wrapped = self.call_model_init()  # the search lets go of the last trial's

    def _make_crops(self, distiller: Distiller) -> None:
        """Augment the training images as the arguments say by now."""
        student = distiller.student if distiller.reader is None else distiller.reader
        self.train_dataset = self._made_crops = self._crops(
            args=self.args, processor=self.processing_class, model=student, loss=distiller.loss
        )


def apply_trial(args: DistillationArguments, before: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Give the arguments a trial's values, and those of before the search to all others.

    Args:
        args: Arguments of the run; changed.
        before: Their values before the search.
        values: Name -> value of what the trial varies.

    Raises:
        ValueError: If an argument does not exist, can't be varied, or its value is refused.
    """
    known = {field.name for field in fields(args)}
    for name in values:
        if name not in known:
            raise ValueError(f"hp_space gives {name!r}, which is no training argument.{did_you_mean(name, known)}")
        if name in FIXED or role_of(name).on_resume is OnResume.IRRELEVANT:
            raise ValueError(
                f"hp_space gives {name!r}, which trials can't vary: it is set up once, or has no bearing on the "
                "student's weights. Set it in args."
            )
    vars(args).clear()
    vars(args).update(before)
    for name, value in values.items():
        old = getattr(args, name)
        setattr(args, name, type(old)(value) if isinstance(old, float | Enum) else value)
    check_values(args)


def refuse_search(model_init: Any, backend: str | None, options: Mapping[str, Any]) -> None:
    """Refuse searches that would not work.

    Args:
        model_init: Makes the students; None where the trainer has one student.
        backend: Who proposes values.
        options: Options of the backend.

    Raises:
        ValueError: If nothing makes new students, the backend was never tried, or trials shall run at once.
    """
    if model_init is None:
        raise ValueError(
            "hyperparameter_search trains a new student in each trial: build DistillationTrainer with model_init, a "
            "function that makes one, in place of model."
        )
    if getattr(backend, "value", backend) not in (None, "optuna"):
        raise ValueError(f"backend is {backend!r}, and hyperparameter_search was tried with optuna only.")
    if options.get("n_jobs", 1) != 1:
        raise ValueError("n_jobs must be 1: all trials share one trainer.")


def refuse_other_classes(config: PreTrainedConfig, num_labels: int, ignore_index: int) -> None:
    """Refuse a new student that has not the classes of the first.

    Raises:
        ValueError: If it has not.
    """
    if (config.num_labels, config.semantic_loss_ignore_index) != (num_labels, ignore_index):
        raise ValueError(
            f"model_init gave a student of {config.num_labels} classes that ignores the label "
            f"{config.semantic_loss_ignore_index}, and one of {num_labels} that ignores {ignore_index} before: all "
            "must have the same."
        )


def mean_iou_of(metrics: Mapping[str, float]) -> float:
    """The objective of a search that names none.

    Raises:
        ValueError: If there are several evaluation sets.
    """
    if "eval_mean_iou" not in metrics:
        raise ValueError(
            "hyperparameter_search compares trials by eval_mean_iou, and evaluations of this run give "
            f"{', '.join(metrics)}: pass compute_objective, a function of these."
        )
    return metrics["eval_mean_iou"]
