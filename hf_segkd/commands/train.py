"""`hf-segkd train`: trains a network on labels. With a teacher it is `distill`, which takes the same flags."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    PreTrainedModel,
    SegformerImageProcessor,
    set_seed,
)

from hf_segkd.commands.command_line import DataFlags, parse_arguments
from hf_segkd.data import (
    LabelAccount,
    LabelInfo,
    check_dataset,
    evenly_spread,
    label_info,
    load_unlabelled_images,
)
from hf_segkd.data.labels import IGNORE_INDEX
from hf_segkd.evaluation.reports import SCORES_FILE, format_report, read_json, training_versions, write_json
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.models import MultiBandImageProcessor, load_pretrained_backbone
from hf_segkd.networks import FeatureNetwork
from hf_segkd.networks.loading import build_config, load_network, network_from_config
from hf_segkd.networks.profiling import peak_memory
from hf_segkd.training.arguments import DistillationArguments, json_object
from hf_segkd.training.callbacks import StepTimes
from hf_segkd.training.trainer import DistillationTrainer


@dataclass(kw_only=True)
class TrainingCommand(DataFlags):
    """Flags: networks and data of a run."""

    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="val", metadata={"help": "Split to evaluate on."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many evenly spread images."})
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Height and width that whole images are resized to; by default they keep their size."},
    )
    image_statistics: str | None = field(
        default=None,
        metadata={
            "help": "JSON file of hf-segkd count_statistics with mean and std of the images; by default ImageNet's, "
            "which only RGB pictures have."
        },
    )
    student: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a network to start from; else student_config."}
    )
    student_config: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Config of a new student, as a JSON object; model_type is DeepLabV3+ unless given."},
    )
    pretrained_backbone: str | None = field(
        default=None,
        metadata={"help": "ImageNet weights of a new student's backbone: torchvision's name for them, or a file."},
    )
    teacher: str | None = field(default=None, metadata={"help": "Folder or Hub id of the teacher."})
    teacher_taps: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Taps, beside the default ones, of a teacher that is not of hf_segkd, as a JSON object: tap name "
            "-> path of the module whose output it is, or a regular expression that matches it; hf-segkd inspect_model "
            "lists them."
        },
    )
    student_taps: dict[str, Any] | str | None = field(default=None, metadata={"help": "The same for the student."})
    unlabelled_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of images without masks, which the student learns from by what its teacher sees."},
    )
    class_map: str | None = field(
        default=None,
        metadata={
            "help": "Which class of the teacher teaches which of the student: names, index, or a YAML file of lines "
            "`teacher's class: student's class`; by default by name where names agree, else by index."
        },
    )
    check_data: bool = field(default=True, metadata={"help": "Read some images and masks before training starts."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student_config is not None:
            self.student_config = json_object(self.student_config, "student_config")
        for flag in ("teacher_taps", "student_taps"):
            if getattr(self, flag) is not None:
                setattr(self, flag, json_object(getattr(self, flag), flag))
        for flag in ("max_train_samples", "max_eval_samples"):
            if getattr(self, flag) is not None and getattr(self, flag) < 1:
                raise ValueError(f"--{flag} must be at least 1, got {getattr(self, flag)}.")
        if self.teacher is None and (self.teacher_taps is not None or self.class_map is not None):
            raise ValueError("--teacher_taps and --class_map say how a teacher is read, and there is no --teacher.")


def main(args: list[str] | None = None) -> RunReport:
    """Train, evaluate and save a student; returns the evaluation that is also written to evaluation.json."""
    command, arguments = parse_arguments(TrainingCommand, DistillationArguments, args=args)
    set_seed(arguments.seed)
    train, evaluation, accounts = load_splits(command, arguments.bad_images)
    unlabelled = None
    if command.unlabelled_dir is not None:
        unlabelled = load_unlabelled_images(command.unlabelled_dir, command.num_channels)
        if command.check_data:
            check_dataset(unlabelled, num_samples=8, bad_images=arguments.bad_images)
    labels = label_info(train)
    student, processor = build_student(command, labels)
    if command.student_taps is not None:
        student = FeatureNetwork(student, command.student_taps)
    teacher, teacher_processor = None, None
    if command.teacher is not None:
        teacher, teacher_processor = load_network(command.teacher, dtype="auto")
        if command.teacher_taps is not None:
            teacher = FeatureNetwork(teacher, command.teacher_taps)
    trainer = DistillationTrainer(
        model=student,
        args=arguments,
        teacher=teacher,
        train_dataset=train,
        unlabelled_dataset=unlabelled,
        eval_dataset=evaluation,
        processing_class=processor,
        teacher_processor=teacher_processor,
        class_map=command.class_map,
    )
    if trainer.is_world_process_zero():
        print("\n\n".join(map(str, accounts.values())))
    step_times = StepTimes()
    trainer.add_callback(step_times)
    processor_seconds = time.process_time()
    result = trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    processor_seconds = time.process_time() - processor_seconds
    trainer.evaluate()
    loss = trainer.distiller.loss
    report = trainer.report().extended(
        teacher=_whole_path(command.teacher),
        initial_weights=_whole_path(command.student or command.pretrained_backbone) or "random",
        train_seconds=result.metrics["train_runtime"],
        train_processor_seconds=processor_seconds,
        step_seconds=step_times.median,
        peak_memory=peak_memory(),
        loss_parameters=sum(parameter.numel() for parameter in loss.parameters()) if loss is not None else 0,
        versions=training_versions(),
        data=command.source(command.eval_split),
        label_account={split: account.as_dict() for split, account in accounts.items()} or None,
    )
    if trainer.is_world_process_zero():
        write_json(report.to_json(), Path(arguments.output_dir, SCORES_FILE))
        print(format_report(report))
    trainer.save_state()
    save(trainer)
    trainer.accelerator.end_training()
    return report


def save(trainer: DistillationTrainer) -> None:
    """Save the student, and with --push_to_hub publish it; last, so that nothing measured is lost when that fails.

    Raises:
        ValueError: If the Hub refuses it; the message says what was saved and how to publish it.
        ConnectionError: The same when the connection breaks.
    """
    folder = trainer.args.output_dir
    try:
        trainer.save_model()
    except (ConnectionError, ValueError) as error:
        if not trainer.args.push_to_hub:
            raise
        raise type(error)(
            f"The student could not be published: {error}\nStudent and scores are in {folder}; publish them "
            f"with: hf-segkd publish --model {folder} --repo_id {trainer.hub_model_id}"
        ) from error


def load_splits(
    command: TrainingCommand, bad_images: str
) -> tuple[datasets.Dataset, datasets.Dataset, dict[str, LabelAccount]]:
    """The training and the evaluation split, checked as far as possible before training, and their labels."""
    train, evaluation = command.load(command.train_split), command.load(command.eval_split)
    if command.max_train_samples is not None:
        train = train.select(range(min(command.max_train_samples, len(train))))
    if command.max_eval_samples is not None:
        evaluation = evenly_spread(evaluation, command.max_eval_samples)
    if not command.check_data:
        return train, evaluation, {}
    of_training = check_dataset(train, num_samples=8, bad_images=bad_images)
    return train, evaluation, {"train": of_training, "eval": check_dataset(evaluation, num_samples=8)}


def build_student(command: TrainingCommand, labels: LabelInfo) -> tuple[PreTrainedModel, Any]:
    """The student, new or loaded, and its image processor.

    Raises:
        ValueError: If the flags name none or two, contradict each other, or name no network that gives logits for each
            pixel.
    """
    if (command.student is None) == (command.student_config is None):
        raise ValueError("Give either student (a network to start from) or student_config (a new one).")
    if command.student is not None:
        if command.pretrained_backbone is not None:
            raise ValueError("pretrained_backbone is for a new student; student already brings its weights.")
        if command.image_size is not None:
            raise ValueError("image_size is for a new student; student brings its image processor, and so its size.")
        if command.image_statistics is not None:
            raise ValueError("image_statistics is for a new student; student brings its image processor.")
        return load_network(command.student, labels)
    label2id = {name: index for index, name in labels.id2label.items()}
    channels = command.num_channels
    values = dict(command.student_config)
    if channels is not None and "backbone_config" not in values:
        values.setdefault("num_channels", channels)
    config = build_config(values, "student_config", id2label=labels.id2label, label2id=label2id)
    if labels.ignore_index != IGNORE_INDEX:  # there are more than 255 classes
        config.semantic_loss_ignore_index = labels.ignore_index
    student = network_from_config(config)
    if command.pretrained_backbone is not None:
        load_pretrained_backbone(student, command.pretrained_backbone)
    return student, build_processor(command.image_size, command.image_statistics, channels)


def build_processor(
    image_size: list[int] | None, image_statistics: str | None = None, num_channels: int | None = None
) -> SegformerImageProcessor:
    """Transformers' own processor with ImageNet's mean and std; whole images keep their size unless one is given.

    Args:
        image_size: Height and width to resize to.
        image_statistics: JSON file with other mean and std.
        num_channels: Number of bands of images that are read as stored, which take a `MultiBandImageProcessor`.

    Raises:
        ValueError: If `image_size` is not a height and a width of at least 2 pixels, or the statistics are missing
            where they are needed, or belong to other images.
    """
    given: dict[str, Any] = {"do_reduce_labels": False}
    if image_size is None:
        given["do_resize"] = False
    elif len(image_size) != 2 or min(image_size) < 2:  # PyTorch can't resize to 1 x 1
        raise ValueError(f"image_size takes height and width in pixels, from 2, got {image_size}.")
    else:
        given |= {"do_resize": True, "size": dict(zip(("height", "width"), image_size, strict=True))}
    if image_statistics is not None:
        given |= _mean_and_std(Path(image_statistics), num_channels)
    elif num_channels is not None:
        raise ValueError(
            f"Images of {num_channels} channels as they are stored have no usual mean and std: count them with "
            "`hf-segkd count_statistics` and pass its file as --image_statistics."
        )
    return (SegformerImageProcessor if num_channels is None else MultiBandImageProcessor)(**given)


def _mean_and_std(file: Path, num_channels: int | None) -> dict[str, list[float]]:
    if not file.is_file():
        raise ValueError(f"--image_statistics: there is no file {file}; `hf-segkd count_statistics` writes it.")
    content = read_json(file)
    if not isinstance(content, dict) or not {"num_channels", "image_mean", "image_std"} <= content.keys():
        raise ValueError(f"--image_statistics: {file} is no file of `hf-segkd count_statistics`.")
    if content["num_channels"] != num_channels:
        counted, read = ("RGB" if n is None else f"{n} bands" for n in (content["num_channels"], num_channels))
        raise ValueError(f"--image_statistics: {file} is of images read as {counted}, and the data set reads {read}.")
    return {name: content[name] for name in ("image_mean", "image_std")}


def _whole_path(name: str | None) -> str | None:
    """The name of weights; a folder or file as its whole path, so that it is never taken for a name on the Hub."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name
