"""`hf-segkd publish`: sends a trained student, its card and its scores to the Hub in one commit."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_segkd.commands.command_line import parse_arguments
from hf_segkd.commands.publish_facts import evaluated_images, find_teacher, gather_facts, teacher_to_show
from hf_segkd.commands.publish_flags import PublishingCommand
from hf_segkd.commands.run_folder import copy_exports, scores, with_training
from hf_segkd.data import class_colours, label_info
from hf_segkd.data.image_processors import num_bands
from hf_segkd.evaluation.reports import SCORES_FILE
from hf_segkd.networks import with_taps
from hf_segkd.networks.loading import load_network
from hf_segkd.publishing.card_facts import CardFacts
from hf_segkd.publishing.hub import planned_upload, prepare_repository, upload
from hf_segkd.publishing.javascript import javascript_size
from hf_segkd.publishing.publication import NOT_ALWAYS_THERE, is_ours, samples_to_show, write_publication
from hf_segkd.publishing.space import write_space
from hf_segkd.publishing.static_space import write_static_space
from hf_segkd.training.ema import AVERAGE_FILE

# What to do about a Space of a private network.
PRIVATE = {
    "gradio": "The network is private: give the Space a secret HF_TOKEN that may read it.",
    "static": "The network is private, and the page reads it without a token: it will work once the network is public.",
}


@dataclass
class Part:
    """The content of one repository: its name, its files, and the folder that keeps a copy."""

    repo_id: str
    folder: Path
    kept: Path | None
    kind: dict[str, str]


def main(args: list[str] | None = None) -> Path | str:
    """Publish a network; returns the commit's URL, or in a dry run the folder that would be sent."""
    (command,) = parse_arguments(PublishingCommand, args=args)
    with tempfile.TemporaryDirectory() as scratch:
        message, parts = write(command, Path(scratch))
        for part in parts:
            print(f"\n{planned_upload(part.folder, part.repo_id, repo_type=part.kind['repo_type'])}")
            if part.kept is not None:
                shutil.copytree(part.folder, part.kept, dirs_exist_ok=True)
        if command.dry_run:
            print(f"\nDry run: nothing was sent. The folder is {command.kept}; its README.md is the card.")
            return command.kept
        # All before anything is sent, so that a wrong name, token, right or licence leaves nothing half published.
        for part in parts:
            prepare_repository(part.repo_id, private=command.private, license=command.license, **part.kind)
        urls = [send(part, command.private, message) for part in parts]
    if command.space is not None and command.private:
        print(PRIVATE[command.space_sdk])
    return urls[0]


def write(command: PublishingCommand, scratch: Path) -> tuple[str, list[Part]]:
    """Write all files of the network's repository, and of the Space's where one is asked for.

    Returns:
        The message of the commit, and the repositories.
    """
    folder = checked_folder(command)
    student, processor = load_network(command.model)
    if command.space is not None and num_bands(processor) is not None:
        raise ValueError(
            f"The page of a Space takes RGB pictures, and this network images of {num_bands(processor)} bands as they "
            "are stored: publish it without --space."
        )
    if command.self_contained and not is_ours(student):
        print("--self_contained has no effect: the network is one of transformers itself, which brings no code.")
    evaluated = (folder / command.evaluation).is_file() or command.evaluation != SCORES_FILE
    report = with_training(folder, scores(folder, command.evaluation)) if evaluated else None
    teacher = find_teacher(command, report)
    networks = {"student": (with_taps(student), processor)}
    if teacher is not None and teacher.network is not None:
        networks = {**teacher_to_show(teacher, student, processor, report), **networks}
    images = evaluated_images(command, report)
    samples, why_not = (None, None) if images is None else samples_to_show(images, command.pictures)
    facts = gather_facts(command, student, processor, report, teacher, images)
    facts.pictures_note = command.pictures_note or why_not
    if command.space_sdk == "static" and javascript_size(processor, facts.exports) is None:
        raise ValueError(
            "A static Space runs an ONNX file that gives logits, for the one size that a SegformerImageProcessor "
            f"resizes to by the bilinear filter, and {folder} has none: run hf-segkd export --model {folder} --format "
            "onnx before, without --dynamic, --argmax and --image_size, or publish with --space_sdk gradio."
        )
    tell_what_is_not_known(facts)

    model = Part(command.repo_id, scratch / "model", command.kept, {"repo_type": "model"})
    write_publication(
        model.folder, student=student, processor=processor, facts=facts, networks=networks, samples=samples
    )
    copy_exports(folder, model.folder)
    message = ", ".join([facts.architecture, *facts.method_names])
    if command.space is None:
        return message, [model]
    kind = {"repo_type": "space", "space_sdk": command.space_sdk}
    space = Part(command.space, scratch / "space", command.kept_space, kind)
    palette = class_colours(facts.class_names) if images is None else label_info(images).palette
    page = {
        "student_id": command.repo_id,
        "title": facts.repo_id.split("/")[-1],
        "license": command.license,
        "examples": [] if samples is None else list(samples["image"]),
        "colours": dict(zip(facts.class_names, palette, strict=True)),
    }
    if command.space_sdk == "static":
        write_static_space(space.folder, **page)
        return message, [model, space]
    if teacher is not None and facts.teacher_id is None:
        print("The Space shows the student alone: --teacher_id says where on the Hub its teacher is.")
    write_space(space.folder, teacher_id=facts.teacher_id, **page)
    return message, [model, space]


def checked_folder(command: PublishingCommand) -> Path:
    """The folder of the network.

    Raises:
        ValueError: If no network is saved there; the message names subfolders that hold one.
    """
    folder = Path(command.model)
    if not (folder / "config.json").is_file():
        inside = sorted(str(file.parent) for file in folder.glob("*/config.json"))
        hint = f" There are some in its subfolders: {', '.join(inside)}." if inside else ""
        raise ValueError(f"--model {command.model}: there is no folder with a saved network (config.json) there.{hint}")
    if (folder / AVERAGE_FILE).is_file():
        print(f"{folder} is a checkpoint: its weights are the student's own, not the averages of --ema_decay.")
    return folder


def tell_what_is_not_known(facts: CardFacts) -> None:
    """Print what the card has to leave open, and what would fill it."""
    questions: dict[str, Any] = {
        "how it was trained (training leaves a record in its folder)": facts.method,
        "on what (--dataset_name)": facts.dataset,
        "its scores (hf-segkd evaluate)": facts.report,
        "its licence (--license)": facts.license,
    }
    if unknown := [question for question, answer in questions.items() if answer is None]:
        print(f"The card says that of this network is not known: {', '.join(unknown)}.")


def send(part: Part, private: bool, message: str) -> str:
    """Upload the files for one repository; returns the commit's URL."""
    outdated = NOT_ALWAYS_THERE if part.kind["repo_type"] == "model" else ()
    url = upload(part.folder, part.repo_id, private=private, commit_message=message, outdated=outdated, **part.kind)
    print(f"\n{'Published' if part.kind['repo_type'] == 'model' else 'Space'}: {url}")
    return url
