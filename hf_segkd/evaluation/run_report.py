"""`RunReport`: the content of evaluation.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(init=False)
class RunReport(Mapping[str, Any]):
    """Scores of a network on one split, and how it was trained where that is known.

    A report holds the entries that it was made with, in their order. An entry that it lacks is None as an attribute,
    and not in `to_json`; one that is null in a file is None too, and is kept. It is read by key too, as the file is:
    `report["batch_size"]`.

    Attributes:
        dataset: Name of the data set, as `load_segmentation_dataset` or the publisher calls it.
        split: Its split.
        num_images: Number of evaluated images.
        mean_iou: Mean IoU over the classes that truth or network have, 0..1; None where no pixel was labelled.
        mean_accuracy: Mean over the labelled classes of the share of their pixels that is right; as `mean_iou`.
        overall_accuracy: Share of the labelled pixels that is right; as `mean_iou`.
        classes: Name, in the order of the ids -> "iou" and "accuracy", 0..1; None for a class without any pixel in
            truth and network, or (accuracy) in the truth.
        confusion_matrix: Pixel counts, k rows of k: rows are the truth, columns the prediction.
        method: Name in `LOSSES`, several joined by ","; "none" for training on labels only; None where it is not known.
        method_kwargs: Arguments of the method.
        class_map: For each class of the teacher the id of the student's class that it teaches, or None; None without
            a teacher, or where they share no classes.
        seed: Seed of the training.
        steps: Optimizer steps that were trained.
        batch_size: Images per optimizer step, over all processes and accumulated batches.
        num_processes: Processes of the training.
        ema_decay: Decay of the average of the weights that is scored, below 1; 0 without.
        train_images: Number of labelled training images; like the next three None for tensors of a user's own,
            and for a stream, but for the ratio.
        unlabelled_images: Number of training images without labels.
        unlabelled_ratio: Unlabelled images for each labelled one in an epoch; None where none are mixed in.
        unreadable_images: Number of training images that were left out, since `resumed_from_step`.
        resumed_from_step: Step that the run was last resumed from; None for a run that never stopped.
        best_step: Step whose weights are scored, where training went back to its best checkpoint.
        teacher: Folder (whole path) or Hub id of the teacher; None without one. This and the next nine are the
            commands' own.
        initial_weights: Folder, file or name of the weights that training started from, or "random".
        train_seconds: Seconds of training on the clock, since `resumed_from_step`.
        train_processor_seconds: Seconds of processor time of the main process, likewise.
        step_seconds: Seconds of an optimizer step on the clock with the loading of its images, the median, likewise.
        peak_memory: Most bytes that the training had at once: of its GPU, or without one of its main process.
        loss_parameters: Number of parameters of the distillation loss, which the student does not keep.
        versions: Package -> version, of what it was trained with.
        data: The evaluated images as `DataFlags.source` describes them: dataset, data_dir, hub_id, dataset_options,
            split.
        label_account: Split -> pixels of each class and without one, in the images that were read before training
            (`LabelAccount.as_dict`); None where none were.
        model: Folder or Hub id of an evaluated network; of `evaluate` only.
        trained_on: Data set of the training, where scores may be of another; added, as the rest, from a run's folder.
        settings: Training arguments; in no file.
        network: Path in the configuration -> value (`config_values`); in no file.
    """

    dataset: str
    split: str
    num_images: int
    mean_iou: float | None
    mean_accuracy: float | None
    overall_accuracy: float | None
    classes: dict[str, dict[str, float | None]]
    confusion_matrix: list[list[int]] | None = field(default=None, repr=False)
    method: str | None = None
    method_kwargs: dict[str, Any] | None = None
    class_map: list[int | None] | tuple[int | None, ...] | None = None
    seed: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    num_processes: int | None = None
    ema_decay: float | None = None
    train_images: int | None = None
    unlabelled_images: int | None = None
    unlabelled_ratio: float | None = None
    unreadable_images: int | None = None
    resumed_from_step: int | None = None
    best_step: int | None = None
    teacher: str | None = None
    initial_weights: str | None = None
    train_seconds: float | None = None
    train_processor_seconds: float | None = None
    step_seconds: float | None = None
    peak_memory: int | None = None
    loss_parameters: int | None = None
    versions: dict[str, str] | None = None
    data: dict[str, Any] | None = None
    label_account: dict[str, Any] | None = None
    model: str | None = None
    trained_on: str | None = None
    settings: dict[str, Any] | None = None
    network: dict[str, Any] | None = None

    def __init__(self, **entries: Any) -> None:
        """Hold these entries.

        Raises:
            TypeError: If an entry is no attribute of a report.
        """
        if unknown := entries.keys() - {entry.name for entry in fields(self)}:
            raise TypeError(f"A report has no {', '.join(sorted(unknown))}.")
        vars(self).update(entries)

    def __getitem__(self, name: str) -> Any:
        """The entry of this name; a KeyError where the report lacks it."""
        return vars(self)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    @classmethod
    def from_json(cls, entries: dict[str, Any]) -> RunReport:
        """The report of a file, also of an earlier or later version: unknown entries are kept.

        A score that is NaN, as earlier versions wrote it, is None.
        """
        report = cls()
        for name, value in entries.items():
            vars(report)[name] = None if isinstance(value, float) and math.isnan(value) else value
        return report

    def to_json(self) -> dict[str, Any]:
        """The content of a file: the entries of the report, in their order."""
        return dict(vars(self))

    def extended(self, **entries: Any) -> RunReport:
        """A copy with more entries, or other values."""
        return RunReport.from_json({**vars(self), **vars(RunReport(**entries))})

    def percent(self, metric: str) -> float:
        """One of the three scores over all classes, 0..100.

        Raises:
            ValueError: If there is none.
        """
        score = getattr(self, metric)
        if score is None:
            raise ValueError(f"There is no {metric}: the images have no labelled pixel. Evaluate on others.")
        return 100 * score
