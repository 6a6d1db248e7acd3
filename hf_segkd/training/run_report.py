"""`run_report`: the scores of a run's student; `write_student`: the files that are published of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from hf_segkd.data import AugmentedDataset, EvaluationDataset, EvaluationStream, TrainingStream, label_info
from hf_segkd.evaluation.reports import evaluation_report, training_versions
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.networks import without_taps
from hf_segkd.networks.class_map import ClassMap
from hf_segkd.networks.teacher import Teacher
from hf_segkd.publishing.card_facts import CardFacts
from hf_segkd.publishing.publication import cost, describe, image_size, samples_to_show, write_publication
from hf_segkd.training.arguments import DistillationArguments, default_settings
from hf_segkd.types import Paper


@dataclass(frozen=True)
class Evaluation:
    """The last evaluation of a student.

    Attributes:
        images: The data set it was evaluated on.
        step: Optimizer steps that the run had made.
    """

    images: Any
    step: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's parts, and how far it has trained.

    Attributes:
        args: Arguments of the run.
        student: The student, as it is scored, saved and published.
        processor: The student's image processor.
        teacher: The teacher, None without one.
        own_paper: Publication of a loss that is not of hf_segkd, where it has one.
        train_dataset: The trainer's training data set.
        eval_dataset: The trainer's evaluation data set.
        steps: Optimizer steps that were trained, the budget that comparisons go by.
        best_step: The step whose weights the student has, where training went back to those of an earlier one.
        resumed_from_step: Where the run was resumed, None for one that never stopped.
        unreadable_images: `image_id` of each training image that was left out since.
        evaluation: The last one, of the student as it was then; None when other weights were loaded since.
        confusion_matrix: Its counts, (k, k) int64: rows are the truth, columns the prediction; empty when it was not
            completed.
    """

    args: DistillationArguments
    student: PreTrainedModel
    processor: Any
    teacher: Teacher | None
    own_paper: Paper | None
    train_dataset: Dataset | None
    eval_dataset: Any
    steps: int
    best_step: int | None
    resumed_from_step: int | None
    unreadable_images: list[str]
    evaluation: Evaluation | None
    confusion_matrix: Tensor

    @property
    def classes(self) -> ClassMap | None:
        """From the teacher's classes to the student's; None without a teacher or common classes."""
        return None if self.teacher is None else self.teacher.classes


def run_report(run: Run) -> RunReport | None:
    """Scores of the student, and how it was trained; None if its current weights were not scored on known images."""
    if run.evaluation is None or not run.confusion_matrix.numel():
        return None
    images = run.evaluation.images
    if run.evaluation.step != run.steps or not isinstance(images, EvaluationDataset | EvaluationStream):
        return None
    if isinstance(images, EvaluationStream):
        report = evaluation_report(run.confusion_matrix, images.labels, images.split, images.num_images)
    else:
        rows = images.dataset
        report = evaluation_report(run.confusion_matrix, label_info(rows), str(rows.split or "eval"), len(rows))
    report = report.extended(
        method=run.args.method,
        method_kwargs=run.args.method_kwargs,
        class_map=None if run.classes is None else run.classes.targets,
        seed=run.args.seed,
        steps=run.steps,
        batch_size=run.args.images_per_step,
        num_processes=run.args.world_size,
        ema_decay=run.args.ema_decay,
        **_image_counts(run),
        resumed_from_step=run.resumed_from_step,
    )
    if run.best_step is not None:
        report.best_step = run.best_step
    return report


def _image_counts(run: Run) -> dict[str, Any]:
    """What a report says of the training images, where they are known."""
    images = run.train_dataset
    if isinstance(images, TrainingStream):  # how many images it has, nobody counted
        return {"unlabelled_ratio": None if images.unlabelled is None else run.args.unlabelled_ratio}
    if not isinstance(images, AugmentedDataset):
        return {}
    labelled = len(images.dataset) if images.has_labels else 0
    mixed_in = 0 if images.unlabelled is None else len(images.unlabelled)
    return {
        "train_images": labelled,
        "unlabelled_images": len(images.dataset) - labelled + mixed_in,
        "unlabelled_ratio": run.args.unlabelled_ratio if mixed_in else None,
        "unreadable_images": len(run.unreadable_images),
    }


def network_costs(run: Run) -> list[dict[str, Any]]:
    """Size and multiply-adds of teacher and student, as `CardFacts.costs` takes them."""
    size = image_size(run.processor, _known_rows(run.eval_dataset))
    networks = {} if run.teacher is None else {"teacher": run.teacher.network}
    return [cost(name, network, size) for name, network in {**networks, "student": run.student}.items()]


def write_student(folder: Path, run: Run, repo_id: str, costs: list[dict[str, Any]]) -> None:
    """Write what is published of a student: weights, configuration, image processor, card, scores, pictures.

    Args:
        folder: Folder to write to.
        run: The run of the student, which is in evaluation mode.
        repo_id: Full name of the repository, or what it would be called.
        costs: See `network_costs`.
    """
    rows = _known_rows(run.eval_dataset)
    samples, why_not = (None, None) if rows is None else samples_to_show(rows)
    facts = _card_facts(run, repo_id, costs, why_not)
    write_publication(
        folder, student=run.student, processor=run.processor, facts=facts, networks=shown_networks(run), samples=samples
    )


def shown_networks(run: Run) -> dict[str, tuple[nn.Module, Any]]:
    """The networks for the pictures, each with the student's processor; without common classes only the student."""
    networks = {"student": (run.student, run.processor)}
    return networks if run.classes is None else {"teacher": (run.teacher, run.processor), **networks}


def _card_facts(run: Run, repo_id: str, costs: list[dict[str, Any]], pictures_note: str | None) -> CardFacts:
    args, report = run.args, run_report(run)
    teacher = None if run.teacher is None else without_taps(run.teacher.network)
    if report is not None and report.mean_iou is None:  # no pixel of the evaluation was labelled
        report = None
    origin = "" if teacher is None else run.teacher.network.name_or_path
    return CardFacts(
        repo_id=repo_id,
        architecture=describe(run.student),
        id2label=run.student.config.id2label,
        method=args.method,
        method_kwargs=args.method_kwargs,
        own_paper=run.own_paper,
        dataset=_name_of(run.train_dataset),
        teacher=None if teacher is None else describe(teacher),
        teacher_id=origin if origin.count("/") == 1 and not Path(origin).exists() else None,
        license=args.hub_license,
        report=report,
        runs=[] if report is None else [report],
        costs=costs,
        settings=args.to_dict(),
        # With accelerate's state as it is: other new arguments would reset it in the middle of the run.
        defaults=default_settings(),
        versions=training_versions(),
        pictures_note=pictures_note,
        self_contained=args.hub_self_contained,
    )


def refuse_card_kwargs(given: dict[str, Any]) -> None:
    """Refuse the arguments of `Trainer`'s own card, because the card here says what training knows.

    Raises:
        ValueError: If something is given.
    """
    if given:
        raise ValueError(
            f"There is no argument {', '.join(given)}: the card is written from what training knows. Its licence is "
            "hub_license of the training arguments, its name hub_model_id; `hf-segkd publish` takes more, such as "
            "--dataset_id and --teacher_id."
        )


def _known_rows(images: Any) -> datasets.Dataset | None:
    return images.dataset if isinstance(images, EvaluationDataset) else None


def _name_of(images: Any) -> str | None:
    """Name of a training set, where it has one; images without labels have none."""
    if isinstance(images, TrainingStream):
        return images.name
    named = isinstance(images, AugmentedDataset) and images.has_labels
    return label_info(images.dataset).name if named else None
