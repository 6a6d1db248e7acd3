"""`Trainer` that tells of its student: scores, how it was trained, and the card that goes along with it."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_segkd.data import AugmentedDataset, EvaluationDataset, label_info
from hf_segkd.evaluation.reports import evaluation_report, versions
from hf_segkd.evaluation.streaming_scores import StreamingScores
from hf_segkd.networks import ForeignNetwork
from hf_segkd.networks.adapted_teacher import AdaptedTeacher, class_map_of
from hf_segkd.publishing.card_facts import CardFacts
from hf_segkd.publishing.publication import (
    cost,
    describe,
    image_size,
    samples_to_show,
    write_publication,
)
from hf_segkd.training.arguments import DistillationArguments, default_settings


class ReportingTrainer(Trainer):
    """The report of a run, and the card of its student.

    Scores are told where the student, as it is now, was evaluated on a data set of `load_segmentation_dataset`.
    """

    args: DistillationArguments
    distiller: nn.Module
    student: PreTrainedModel
    teacher: nn.Module | None
    _scores: StreamingScores

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._scored_images: Any = None  # of the last evaluation; none when the student has changed since
        self.unreadable_images: list[str] = []  # known when training has ended
        self.resumed_from_step: int | None = None  # since which unreadable images, and seconds, are counted
        super().__init__(*args, **kwargs)

    @property
    def confusion_matrix(self) -> Tensor:
        """Counts of the last evaluation, (k, k) int64: rows are the truth, columns the prediction; empty before it."""
        return self._scores.confusion_matrix

    def report(self) -> dict[str, Any] | None:
        """Scores of the student as it is now with how it was trained, if it was evaluated on images that are known.

        `steps` are those that were trained, the budget that comparisons go by; `best_step` is there where training
        went back to the weights of an earlier one. Unreadable images are counted since `resumed_from_step`.
        """
        if not (isinstance(self._scored_images, EvaluationDataset) and self.confusion_matrix.numel()):
            return None
        images = self._scored_images.dataset
        report = evaluation_report(self.confusion_matrix, label_info(images), str(images.split or "eval"), len(images))
        report |= {
            "method": self.args.method,
            "method_kwargs": self.args.method_kwargs,
            "class_map": self._class_targets,
            "seed": self.args.seed,
            "steps": self.state.global_step,
            "batch_size": self.args.images_per_step,
            "num_processes": self.args.world_size,
            "ema_decay": self.args.ema_decay,
            **self._image_counts,
            "resumed_from_step": self.resumed_from_step,
        }
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None and not self.is_in_train:
            report["best_step"] = int(Path(best).name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))
        return report

    @property
    def _image_counts(self) -> dict[str, Any]:
        """What a report tells of the training images, where the trainer knows them."""
        images = self.train_dataset
        if not isinstance(images, AugmentedDataset):
            return {}
        labelled = len(images.dataset) if images.has_labels else 0
        mixed_in = 0 if images.unlabelled is None else len(images.unlabelled)
        return {
            "train_images": labelled,
            "unlabelled_images": len(images.dataset) - labelled + mixed_in,
            "unlabelled_ratio": self.args.unlabelled_ratio if mixed_in else None,
            "unreadable_images": len(self.unreadable_images),
        }

    def create_model_card(self, **given: Any) -> None:
        """Write the card, with the scores and pictures it shows, beside the student in the output folder.

        Args:
            **given: What `Trainer` writes into its card (tags, dataset ...), which is refused.

        Raises:
            ValueError: If something is given: the card tells what training knows.
        """
        refuse_words_for_card(given)
        if self.is_world_process_zero():
            self._write_publication(Path(self.args.output_dir))

    def _write_publication(self, folder: Path) -> None:
        images = self._evaluation_images()
        samples, why_not = (None, None) if images is None else samples_to_show(images)
        self.student.eval()  # Trainer puts it back into training mode at every step
        write_publication(
            folder,
            student=self.student,
            processor=self.processing_class,
            facts=self._facts(why_not),
            networks=self._networks(),
            samples=samples,
        )

    def _evaluation_images(self) -> datasets.Dataset | None:
        return self.eval_dataset.dataset if isinstance(self.eval_dataset, EvaluationDataset) else None

    @property
    def bare_teacher(self) -> nn.Module | None:
        """The teacher without what accelerate and torch.compile wrap it in; None without one."""
        return None if self.teacher is None else self.accelerator.unwrap_model(self.teacher, keep_torch_compile=False)

    def _teacher_network(self) -> PreTrainedModel | ForeignNetwork | None:
        """The teacher as it is without its student."""
        teacher = self.bare_teacher
        return teacher.network if isinstance(teacher, AdaptedTeacher) else teacher

    @property
    def _class_targets(self) -> tuple[int | None, ...] | None:
        """For each class of the teacher the student's that it teaches; None without a teacher or common classes."""
        class_map = None if self.teacher is None else class_map_of(self.bare_teacher)
        return None if class_map is None else class_map.targets

    def _networks(self) -> dict[str, tuple[nn.Module, Any]]:
        """What the pictures compare: both see the student's pixels, and speak of its classes where they can."""
        networks = {"student": (self.student, self.processing_class)}
        if self._class_targets is None:
            return networks
        return {"teacher": (self.bare_teacher, self.processing_class), **networks}

    @cached_property
    def _costs(self) -> list[dict[str, Any]]:
        size = image_size(self.processing_class, self._evaluation_images())
        networks = {"teacher": self._teacher_network(), "student": self.student}
        return [cost(name, network, size) for name, network in networks.items() if network is not None]

    def _facts(self, pictures_note: str | None) -> CardFacts:
        report, teacher = self.report(), self._teacher_network()
        if report is not None and math.isnan(report["mean_iou"]):  # no pixel of the evaluation was labelled
            report = None
        origin = "" if teacher is None else teacher.name_or_path
        taught_by = teacher.model if isinstance(teacher, ForeignNetwork) else teacher
        return CardFacts(
            repo_id=self.hub_model_id or Path(self.args.output_dir).absolute().name,
            architecture=describe(self.student),
            id2label=self.student.config.id2label,
            method=self.args.method,
            method_kwargs=self.args.method_kwargs,
            own_paper=None if self.distiller.loss is None else self.distiller.loss.paper,
            dataset=_name_of(self.train_dataset),
            teacher=None if teacher is None else describe(taught_by),
            teacher_id=origin if origin.count("/") == 1 and not Path(origin).exists() else None,
            license=self.args.hub_license,
            report=report,
            runs=[] if report is None else [report],
            costs=self._costs,
            settings=self.args.to_dict(),
            # With accelerate's state as it is: other new arguments would reset it in the middle of the run.
            defaults=default_settings(),
            versions=versions(),
            pictures_note=pictures_note,
            self_contained=self.args.hub_self_contained,
        )


def refuse_words_for_card(given: dict[str, Any]) -> None:
    """Make sure that nobody takes the card for `Trainer`'s, which says what it is told.

    Raises:
        ValueError: If something is given.
    """
    if given:
        raise ValueError(
            f"There is no argument {', '.join(given)}: the card is written from what training knows. Its licence is "
            "hub_license of the training arguments, its name hub_model_id; `hf-segkd publish` takes more, such as "
            "--dataset_id and --teacher_id."
        )


def _name_of(images: Any) -> str | None:
    """Name of a training set, where it has one; images without labels have none."""
    named = isinstance(images, AugmentedDataset) and images.has_labels
    return label_info(images.dataset).name if named else None
