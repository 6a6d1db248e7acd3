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
from hf_segkd.commands.exporting import REPORT as EXPORT_REPORT
from hf_segkd.commands.exporting import SNIPPET
from hf_segkd.commands.networks import load_network
from hf_segkd.data import check_keeps_whole_images, load_segmentation_dataset
from hf_segkd.foreign import with_taps
from hf_segkd.publishing.hub import create_repository, planned_upload, upload
from hf_segkd.publishing.model_card import CardFacts
from hf_segkd.publishing.publication import (
    EXPORTS,
    NOT_ALWAYS_THERE,
    cost,
    default_settings,
    describe,
    image_size,
    is_ours,
    samples_to_show,
    weights_sha256,
    write_publication,
)
from hf_segkd.publishing.space import write_space
from hf_segkd.reports import ARGUMENTS_FILE, SCORES_FILE, read_json
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
    dataset_name: str | None = field(default=None, metadata={"help": "What the card calls the data set."})
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
        # Both before anything is sent: a wrong name, token or right leaves neither half published.
        create_repository(command.repo_id, private=command.private)
        if command.space is not None:
            create_repository(command.space, private=command.private, repo_type="space", space_sdk="gradio")
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


def run_report(folder: Path, evaluation: str) -> dict[str, Any]:
    """The scores in a run's folder, with what its training says of itself (method, seed, steps ...).

    Raises:
        ValueError: If the file is not there, or nothing in the folder names the method.
    """
    return with_method(folder, scores(folder, evaluation))


def scores(folder: Path, evaluation: str) -> dict[str, Any]:
    """The scores in any network's folder, with what training wrote beside them, if it was trained here.

    Raises:
        ValueError: If the file is not there.
    """
    training, file = folder / SCORES_FILE, folder / evaluation
    if not file.is_file():
        # Another name than training's, whose file says more than scores and must stay.
        name = "val.json" if evaluation == SCORES_FILE else evaluation
        raise ValueError(
            f"There is no {evaluation} in {folder}. Score the network with `hf-segkd evaluate --model {folder} "
            f"--output {folder / name}` and the flags of its data set, and publish with `--evaluation {name}`."
        )
    report = read_json(training) if training.is_file() else {}
    return {**report, **read_json(file)}


def with_method(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """A report with method and seed, from the training arguments in the folder where it lacks them.

    Raises:
        ValueError: If neither names the method: what was distilled must not pass for trained on the labels alone.
    """
    settings = training_settings(folder)
    told = {name: settings[name] for name in ("method", "method_kwargs", "seed") if name in settings} | report
    if "method" not in told:
        raise ValueError(
            f"Nothing in {folder} says how the network was trained: there is no {ARGUMENTS_FILE} with a method, and "
            "the scores name none. Give a run's folder as training leaves it."
        )
    return told


def training_settings(folder: Path) -> dict[str, Any]:
    """The training arguments in a run's folder; empty where there are none."""
    file = folder / ARGUMENTS_FILE
    return read_json(file) if file.is_file() else {}


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
        network = with_taps(model), processor
    except ValueError as error:
        if command.teacher is not None:
            raise
        print(f"The teacher {name} could not be loaded, so the card shows neither its pictures nor its costs: {error}")
        network = None
    hub_id = None if network is None or Path(name).is_dir() else name
    known = Path(name, command.evaluation).is_file()
    return Teacher(name, hub_id, network, scores(Path(name), command.evaluation) if known else None)


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
    dataset = command.dataset_name or report.get("dataset")
    if dataset is None:
        raise ValueError(f"{folder} holds no scores, so say what it was trained on, with --dataset_name.")
    size = image_size(processor, images)  # both networks': the student's is what counts
    costs = [cost("student", student, size)]
    if teacher is not None and teacher.network is not None:
        costs.append(cost("teacher", teacher.network[0], size))
    return CardFacts(
        repo_id=command.repo_id,
        architecture=describe(student),
        id2label=student.config.id2label,
        method=training["method"],
        method_kwargs=training.get("method_kwargs", {}),
        dataset=dataset,
        dataset_id=command.dataset_id or report.get("data", {}).get("hub_id"),
        dataset_license=command.dataset_license,
        teacher=None if teacher is None else teacher.name,
        teacher_id=command.teacher_id or (None if teacher is None else teacher.hub_id),
        license=command.license,
        report=report or None,
        runs=[report, *(run_report(Path(run), command.evaluation) for run in command.runs)] if report else [],
        baseline_runs=[run_report(Path(run), command.evaluation) for run in command.baseline],
        teacher_report=None if teacher is None else teacher.report,
        costs=costs,
        export=read_exports(folder),
        settings=training_settings(folder),
        defaults=default_settings(),
        versions=report.get("versions", {}),
        self_contained=command.self_contained,
        space_id=command.space,
    )


def read_exports(folder: Path) -> dict[str, Any] | None:
    """What the export command left in the network's folder, of all formats together.

    Raises:
        ValueError: If an export was made from other weights than the folder's, or does not say from which.
    """
    reports = _export_reports(folder)
    if not reports:
        return None
    weights = weights_sha256(folder)
    for name, report in reports.items():
        if report.get("weights_sha256") is None:
            raise ValueError(
                f"{folder / name} does not say which weights it was made from. Export again, or remove it."
            )
        if report["weights_sha256"] != weights:
            raise ValueError(
                f"{folder / name} was exported from other weights than {folder} holds now. Export again, or remove it."
            )
    found = [_with_folder(report, name) for name, report in reports.items()]
    latencies = [report["latency"] for report in found if report["latency"] is not None]
    return {
        "exports": [export for report in found for export in report["exports"]],
        "latency": latencies[0] if latencies else None,
        "versions": found[0]["versions"],
    }


def copy_exports(folder: Path, publication: Path) -> None:
    """Copy the files that the export command wrote, and no others that lie beside them."""
    for name, report in _export_reports(folder).items():
        (publication / name).mkdir()
        for file in [export["file"] for export in report["exports"]] + [EXPORT_REPORT]:
            shutil.copy(folder / name / file, publication / name / file)
        if (folder / name / SNIPPET).is_file():  # of ONNX files only
            shutil.copy(folder / name / SNIPPET, publication / name / SNIPPET)


def _export_reports(folder: Path) -> dict[str, dict[str, Any]]:
    files = {name: folder / name / EXPORT_REPORT for name in EXPORTS}
    reports = {name: read_json(file) for name, file in files.items() if file.is_file()}
    for name, report in reports.items():
        for export in report["exports"]:
            if Path(export["file"]).name != export["file"]:  # the folder may be somebody else's
                raise ValueError(f"{files[name]} names the file {export['file']!r}, which is not beside it.")
    return reports


def _with_folder(report: dict[str, Any], folder: str) -> dict[str, Any]:
    exports = [export | {"file": f"{folder}/{export['file']}"} for export in report["exports"]]
    return report | {"exports": exports}


def _check_name(flag: str, name: str) -> None:
    """Make sure that a name is a full one on the Hub, before any work is done for it."""
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise ValueError(f"--{flag} takes user/name as on the Hub, got {name!r}. {error}") from error
    if "/" not in name:
        raise ValueError(f"--{flag} takes user/name as on the Hub, got {name!r}: the user or organisation is missing.")
