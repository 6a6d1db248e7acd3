"""`scripts/publish.py`: a trained student, its card and what was measured, to the Hub in one commit."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub.utils import validate_repo_id
from torch import nn
from transformers import PreTrainedModel

from hf_segkd.command_line import parse_arguments
from hf_segkd.commands.networks import load_network
from hf_segkd.commands.run_folder import copy_exports, read_exports, run_report, scores, training_settings, with_method
from hf_segkd.data import check_keeps_whole_images, load_segmentation_dataset
from hf_segkd.foreign import with_taps
from hf_segkd.publishing.card_facts import CardFacts
from hf_segkd.publishing.hub import planned_upload, prepare_repository, upload
from hf_segkd.publishing.publication import (
    NOT_ALWAYS_THERE,
    cost,
    default_settings,
    describe,
    image_size,
    is_ours,
    samples_to_show,
    write_publication,
)
from hf_segkd.publishing.space import write_space
from hf_segkd.reports import SCORES_FILE
from hf_segkd.teachers.adapted import adapted
from hf_segkd.teachers.class_map import ClassMap, match_classes


@dataclass(kw_only=True)
class PublishingCommand:
    """What to publish, under which name, and what it is compared with."""

    model: str = field(metadata={"help": "Folder of the network, as training leaves it."})
    repo_id: str = field(metadata={"help": "Name on the Hub: user/name."})
    private: bool = field(default=False, metadata={"help": "Make a private repository, if it is not there yet."})
    self_contained: bool = field(
        default=False,
        metadata={"help": "Ship the network's code too, for trust_remote_code=True without the package."},
    )
    dry_run: bool = field(default=False, metadata={"help": "Write the folder, say what would go where, send nothing."})
    output: str | None = field(
        default=None,
        metadata={
            "help": "Folder to keep what is sent; by default a temporary one, or MODEL-publication in a dry run."
        },
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of the network as the Hub spells it (apache-2.0, ...); never assumed."}
    )
    evaluation: str = field(default=SCORES_FILE, metadata={"help": "File with the scores in the folder of each run."})
    runs: list[str] = field(default_factory=list, metadata={"help": "Folders of the same training with other seeds."})
    baseline: list[str] = field(
        default_factory=list, metadata={"help": "Folders of the same student trained on the labels alone."}
    )
    teacher: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the teacher; by default the one the run names."}
    )
    teacher_id: str | None = field(
        default=None, metadata={"help": "Hub id of the teacher, when --teacher is a folder: the card's base_model."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "What the card calls the training's data set."})
    dataset_id: str | None = field(default=None, metadata={"help": "Hub id of the data set."})
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of a data set of your own."})
    pictures: int | None = field(
        default=None,
        metadata={
            "help": "Images of the evaluation split to show, 0 for none; by default 4 where the data set's terms are "
            "known to allow it."
        },
    )
    pictures_note: str | None = field(default=None, metadata={"help": "Why the card shows no pictures."})
    space: str | None = field(default=None, metadata={"help": "Also publish a Space under this name that runs it."})

    def __post_init__(self) -> None:
        for flag in ("repo_id", "space", "teacher_id"):
            name = getattr(self, flag)
            if name is not None:
                _check_name(flag, name)
        if self.pictures is not None and self.pictures < 0:
            raise ValueError(f"--pictures takes a number of images, 0 for none, got {self.pictures}.")
        for folder in (self.kept, self.kept_space):
            if folder is not None and folder.exists():
                if not folder.is_dir():
                    raise ValueError(f"{folder} is a file, and --output takes a folder. Choose another one.")
                if any(folder.iterdir()):
                    raise ValueError(f"{folder} exists and is not empty. Remove it, or choose another --output.")

    @property
    def kept(self) -> Path | None:
        """Folder in which what is sent stays, if it does."""
        if self.output is not None:
            return Path(self.output).resolve()
        model = Path(self.model).resolve()
        return model.with_name(f"{model.name}-publication") if self.dry_run else None

    @property
    def kept_space(self) -> Path | None:
        """The same for the Space, beside it."""
        kept = self.kept
        return None if kept is None or self.space is None else kept.with_name(f"{kept.name}-space")


@dataclass
class Teacher:
    """The teacher as far as it can still be found."""

    name: str
    architecture: str | None
    hub_id: str | None
    network: tuple[PreTrainedModel, Any] | None
    report: dict[str, Any] | None


def main(args: list[str] | None = None) -> Path | str:
    """Publish a network; returns the commit's URL, or in a dry run the folder that would be sent."""
    (command,) = parse_arguments(PublishingCommand, args=args)
    folder = Path(command.model)
    if not (folder / "config.json").is_file():
        raise ValueError(f"--model {command.model}: there is no folder with a saved network (config.json) there.")
    student, processor = load_network(command.model)
    report = None
    if (folder / command.evaluation).is_file() or command.evaluation != SCORES_FILE:
        report = run_report(folder, command.evaluation)
    teacher = find_teacher(command, report)
    networks = {"student": (with_taps(student), processor)}
    if teacher is not None and teacher.network is not None:
        networks = {**teacher_to_show(teacher, student, processor, report), **networks}
    if command.self_contained and not is_ours(student):
        print("--self_contained has no effect: the network is one of transformers itself, which brings no code.")
    images = evaluated_images(command, report)
    samples, why_not = (None, None) if images is None else samples_to_show(images, command.pictures)
    facts = gather_facts(command, student, processor, report, teacher, images)
    facts.pictures_note = command.pictures_note or why_not
    with tempfile.TemporaryDirectory() as scratch:
        publication = Path(scratch, "model")
        write_publication(
            publication, student=student, processor=processor, facts=facts, networks=networks, samples=samples
        )
        copy_exports(folder, publication)
        print(planned_upload(publication, command.repo_id))
        if command.kept is not None:
            shutil.copytree(publication, command.kept, dirs_exist_ok=True)
        if command.space is not None:
            page = Path(scratch, "space")
            pictures = () if samples is None else samples["image"]
            write_space(
                page,
                student_id=command.repo_id,
                teacher_id=facts.teacher_id,
                title=facts.repo_id.split("/")[-1],
                license=command.license,
                examples=list(pictures),
            )
            print(f"\n{planned_upload(page, command.space, repo_type='space')}")
            if command.kept_space is not None:
                shutil.copytree(page, command.kept_space, dirs_exist_ok=True)
        if command.dry_run:
            print(f"\nDry run: nothing was sent. The folder is {command.kept}; its README.md is the card.")
            return command.kept
        # Both before anything is sent: a wrong name, token, right or licence leaves neither half published.
        access = {"private": command.private, "license": command.license}
        prepare_repository(command.repo_id, **access)
        if command.space is not None:
            prepare_repository(command.space, **access, repo_type="space", space_sdk="gradio")
        message = f"{facts.architecture}, {facts.method}"
        url = upload(
            publication,
            command.repo_id,
            private=command.private,
            commit_message=message,
            outdated=NOT_ALWAYS_THERE,
        )
        print(f"\nPublished: {url}")
        if command.space is not None:
            space_url = upload(
                page,
                command.space,
                private=command.private,
                repo_type="space",
                space_sdk="gradio",
                commit_message=message,
            )
            print(f"Space: {space_url}")
            if command.private:
                print("The network is private: give the Space a secret HF_TOKEN that may read it.")
    return url


def find_teacher(command: PublishingCommand, report: dict[str, Any] | None) -> Teacher | None:
    """The teacher that the flag or else the run names; what can't be found any more is said and left out."""
    name = command.teacher or (report or {}).get("teacher")
    if name is None:
        return None
    try:
        if looks_like_path(name) and not Path(name).is_dir():  # nobody's business, the Hub's neither
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
    return Teacher(name, architecture, hub_id, network, scores(Path(name), command.evaluation) if known else None)


def teacher_to_show(
    teacher: Teacher, student: PreTrainedModel, processor: Any, report: dict[str, Any] | None
) -> dict[str, tuple[nn.Module, Any]]:
    """The teacher for the pictures, as it speaks of the student's classes; scores on other classes are left out."""
    network, its_processor = teacher.network
    taught, learnt = network.config.id2label, student.config.id2label
    targets = (report or {}).get("class_map")
    class_map = None
    if targets is not None and len(targets) == len(taught):
        names = ([id2label[index] for index in range(len(id2label))] for id2label in (taught, learnt))
        class_map = ClassMap(targets, *names)
    class_map = match_classes(class_map, taught, learnt)
    if class_map is not None and class_map.is_identity:
        return {"teacher": teacher.network}
    if teacher.report is not None:
        print(f"The teacher {teacher.name} was scored on classes of its own, so the card leaves its scores out.")
        teacher.report = None
    if class_map is None:
        print(f"The teacher {teacher.name} has no classes of the student, so the card does not show what it sees.")
        return {}
    shown = adapted(network, student, teacher_processor=its_processor, student_processor=processor, class_map=class_map)
    return {"teacher": (shown, processor)}


def looks_like_path(name: str) -> bool:
    """Whether a name can only be a folder's, and none on the Hub."""
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1


def evaluated_images(command: PublishingCommand, report: dict[str, Any] | None) -> datasets.Dataset | None:
    """The images of the split that was evaluated; None where they are not known or not there any more.

    Raises:
        ValueError: If it is so and the flags ask for pictures of them.
    """
    source = (report or {}).get("data")
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
    report: dict[str, Any] | None,
    teacher: Teacher | None,
    images: datasets.Dataset | None,
) -> CardFacts:
    """All that the card tells."""
    folder = Path(command.model)
    if report is None and (command.runs or command.baseline):
        raise ValueError(f"{folder} holds no scores, so there is nothing to set --runs or --baseline beside.")
    training = with_method(folder, report or {})
    report = report or {}
    trained_on = report.get("trained_on")
    if command.dataset_name is None and not report:
        raise ValueError(f"{folder} holds no scores, so say what it was trained on, with --dataset_name.")
    size = image_size(processor, images)  # both networks': the student's is what counts
    costs = [cost("student", student, size)]
    if teacher is not None and teacher.network is not None:
        costs.append(cost("teacher", teacher.network[0], size))
    runs = [report, *(run_report(Path(run), command.evaluation) for run in command.runs)] if report else []
    baseline_runs = [run_report(Path(run), command.evaluation) for run in command.baseline]
    teacher_report = None if teacher is None else teacher.report
    export = read_exports(folder)
    if command.dataset_name is not None:
        scored = [
            *runs,
            *baseline_runs,
            *([teacher_report] if teacher_report else []),
            *(export or {}).get("exports", []),
        ]
        _rename_dataset(scored, trained_on or report.get("dataset"), command.dataset_name)
    return CardFacts(
        repo_id=command.repo_id,
        architecture=describe(student),
        id2label=student.config.id2label,
        method=training["method"],
        method_kwargs=training.get("method_kwargs", {}),
        dataset=command.dataset_name or trained_on,
        dataset_id=command.dataset_id or report.get("data", {}).get("hub_id"),
        dataset_license=command.dataset_license,
        teacher=None if teacher is None else teacher.architecture or teacher.name,
        teacher_id=command.teacher_id or (None if teacher is None else teacher.hub_id),
        license=command.license,
        report=report or None,
        runs=runs,
        baseline_runs=baseline_runs,
        teacher_report=teacher_report,
        costs=costs,
        export=export,
        settings=training_settings(folder),
        defaults=default_settings(),
        versions=report.get("versions", {}),
        self_contained=command.self_contained,
        space_id=command.space,
    )


def _rename_dataset(scored: list[dict[str, Any]], known_as: str | None, name: str) -> None:
    """Call a data set by the name that its user gives it, wherever something was scored on it."""
    for scores_of in scored:
        if scores_of.get("dataset") == known_as:
            scores_of["dataset"] = name


def _check_name(flag: str, name: str) -> None:
    """Make sure that a name is a full one on the Hub, before any work is done for it."""
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ValueError(f"--{flag} takes user/name as on the Hub, got {name!r}. {error}") from error
    if "/" not in name:
        raise ValueError(f"--{flag} takes user/name as on the Hub, got {name!r}: the user or organisation is missing.")
