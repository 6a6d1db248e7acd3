"""`gather_facts`: what a card says of a network, from its folder, the folders it is compared with, and the flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import PreTrainedModel

from hf_segkd.commands.publish_flags import PublishingCommand
from hf_segkd.commands.run_folder import read_exports, run_report, scores, with_training
from hf_segkd.data import check_keeps_whole_images, class_names, load_segmentation_dataset
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.networks import with_taps
from hf_segkd.networks.class_map import ClassMap, match_classes
from hf_segkd.networks.loading import load_network
from hf_segkd.networks.teacher import Teacher
from hf_segkd.publishing.card_facts import CardFacts
from hf_segkd.publishing.privacy import last_part
from hf_segkd.publishing.publication import cost, describe, image_size
from hf_segkd.training.arguments import default_settings


@dataclass
class FoundTeacher:
    """The teacher as far as it can still be found."""

    name: str
    architecture: str | None
    hub_id: str | None
    network: tuple[PreTrainedModel, Any] | None
    report: RunReport | None


def find_teacher(command: PublishingCommand, report: RunReport | None) -> FoundTeacher | None:
    """The teacher that the flag or else the run names; what can't be found any more is reported and left out."""
    name = command.teacher or (None if report is None else report.teacher)
    if name is None:
        return None
    try:
        if looks_like_path(name) and not Path(name).is_dir():  # a private path, which must not be sent to the Hub
            raise ValueError(f"there is no folder {name}.")
        model, processor = load_network(name)
        check_keeps_whole_images(processor)  # its pictures are of whole images
        network, architecture = (with_taps(model), processor), describe(model)
    except ValueError as error:
        if command.teacher is not None:
            raise
        print(f"The teacher {name} could not be loaded, so the card shows neither its pictures nor its costs: {error}")
        network, architecture = None, None
    hub_id = None if network is None or Path(name).is_dir() else name
    known = Path(name, command.evaluation).is_file()
    return FoundTeacher(name, architecture, hub_id, network, scores(Path(name), command.evaluation) if known else None)


def teacher_to_show(
    teacher: FoundTeacher, student: PreTrainedModel, processor: Any, report: RunReport | None
) -> dict[str, tuple[nn.Module, Any]]:
    """The teacher for the pictures, in the student's classes; scores on other classes are left out."""
    network, its_processor = teacher.network
    taught, learnt = network.config.id2label, student.config.id2label
    targets = None if report is None else report.class_map
    class_map = None
    if targets is not None and len(targets) == len(taught):
        class_map = ClassMap(targets, class_names(taught), class_names(learnt))
    class_map = match_classes(class_map, taught, learnt)
    if class_map is not None and class_map.is_identity:
        return {"teacher": teacher.network}
    if teacher.report is not None:
        print(f"The teacher {teacher.name} was scored on classes of its own, so the card leaves its scores out.")
        teacher.report = None
    if class_map is None:
        print(f"The teacher {teacher.name} has no classes of the student, so the card does not show what it sees.")
        return {}
    shown = Teacher(network, its_processor, class_map, student=student, student_processor=processor)
    return {"teacher": (shown, processor)}


def looks_like_path(name: str) -> bool:
    """Whether a name can only be a folder's, not one on the Hub."""
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1


def evaluated_images(command: PublishingCommand, report: RunReport | None) -> datasets.Dataset | None:
    """The images of the split that was evaluated; None where they are not known or no longer there.

    Raises:
        ValueError: If they are not known or there, and the flags ask for pictures of them.
    """
    source = None if report is None else report.data
    if source is not None:
        place = {"data_dir": source["data_dir"], "hub_id": source["hub_id"], **source["dataset_options"]}
        try:
            return load_segmentation_dataset(source["dataset"], split=source["split"], **place)
        except (ValueError, OSError) as error:
            if command.pictures:
                raise
            print(f"The images of the evaluation could not be loaded, so the card shows none: {error}")
            return None
    if command.pictures:
        raise ValueError(
            f"{command.evaluation} does not say which images were evaluated, so there are none to show. Evaluate the "
            "network again, or publish without --pictures."
        )
    return None


def gather_facts(
    command: PublishingCommand,
    student: PreTrainedModel,
    processor: Any,
    report: RunReport | None,
    teacher: FoundTeacher | None,
    images: datasets.Dataset | None,
) -> CardFacts:
    """Gather all facts of the card."""
    folder = Path(command.model)
    training = with_training(folder, report or RunReport())
    if (command.runs or command.baseline) and (report is None or training.method is None):
        missing = "holds no scores" if report is None else "does not tell how the network was trained"
        raise ValueError(f"{folder} {missing}, so there is nothing to set --runs or --baseline beside.")
    size = image_size(processor, images)  # the student's, used for both networks
    costs = [cost("student", student, size)]
    if teacher is not None and teacher.network is not None:
        costs.append(cost("teacher", teacher.network[0], size))
    runs = []
    if report is not None:
        runs = [report, *(run_report(Path(run), command.evaluation) for run in command.runs)]
    baseline_runs = [run_report(Path(run), command.evaluation) for run in command.baseline]
    teacher_report = None if teacher is None else teacher.report
    export = read_exports(folder)
    if command.dataset_name is not None:
        known_as = None if report is None else training.trained_on or report.dataset
        reports = [*runs, *baseline_runs, *([teacher_report] if teacher_report else [])]
        _rename_dataset(reports, (export or {}).get("exports", []), known_as, command.dataset_name)
    return CardFacts(
        repo_id=command.repo_id,
        architecture=describe(student),
        id2label=student.config.id2label,
        method=training.method,
        method_kwargs=training.method_kwargs or {},
        dataset=command.dataset_name or training.trained_on,
        dataset_id=command.dataset_id or (training.data or {}).get("hub_id"),
        dataset_license=command.dataset_license,
        teacher=None if teacher is None else teacher.architecture or last_part(teacher.name),
        teacher_id=command.teacher_id or (None if teacher is None else teacher.hub_id),
        license=command.license,
        report=report,
        runs=runs,
        baseline_runs=baseline_runs,
        teacher_report=teacher_report,
        costs=costs,
        export=export,
        settings=training.settings,
        defaults=default_settings(),
        versions=training.versions or {},
        self_contained=command.self_contained,
        space_id=command.space,
    )


def _rename_dataset(reports: list[RunReport], exports: list[dict[str, Any]], known_as: str | None, name: str) -> None:
    """Give a data set the user's name for it in all reports and exports that were scored on it."""
    for report in reports:
        if report.dataset == known_as:
            report.dataset = name
    for export in exports:
        if export.get("dataset") == known_as:
            export["dataset"] = name
