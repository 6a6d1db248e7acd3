"""`scripts/evaluate.py`: the score of a network, class by class."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_segkd.arguments import DistillationArguments, json_object, parse_arguments
from hf_segkd.commands.networks import load_network
from hf_segkd.data import LabelInfo, label_info, load_segmentation_dataset
from hf_segkd.metrics import scores_from_confusion_matrix
from hf_segkd.trainer import DistillationTrainer


@dataclass
class EvaluationCommand:
    """What to evaluate, on what."""

    model: str = field(metadata={"help": "Folder or Hub id of the network."})
    dataset: str = field(metadata={"help": "Name of the data set, see load_segmentation_dataset."})
    data_dir: str | None = field(default=None, metadata={"help": "Its folder."})
    hub_id: str | None = field(default=None, metadata={"help": "A copy of the data set on the Hub."})
    dataset_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further arguments of load_segmentation_dataset, as a JSON object."}
    )
    split: str = field(default="val", metadata={"help": "Split to evaluate on."})
    batch_size: int = field(default=1, metadata={"help": "Images per device and step."})
    num_workers: int = field(default=0, metadata={"help": "Processes that load images."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU."})
    output: str | None = field(
        default=None, metadata={"help": "JSON file to write; by default MODEL-DATASET-SPLIT.json."}
    )

    def __post_init__(self) -> None:
        self.dataset_options = json_object(self.dataset_options, "dataset_options")


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Evaluate a network, print the table, write the JSON file and return what is in it."""
    (command,) = parse_arguments(EvaluationCommand, args=args)
    dataset = load_segmentation_dataset(
        command.dataset,
        command.data_dir,
        command.split,
        hub_id=command.hub_id,
        **command.dataset_options,
    )
    labels = label_info(dataset)
    model, processor = load_network(command.model, labels)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DistillationTrainer(
            model=model,
            args=DistillationArguments(
                output_dir=scratch,
                per_device_eval_batch_size=command.batch_size,
                dataloader_num_workers=command.num_workers,
                use_cpu=command.use_cpu,
            ),
            eval_dataset=dataset,
            processing_class=processor,
        )
        trainer.evaluate()
    report = evaluation_report(trainer.confusion_matrix, labels, command.split, len(dataset))
    report["model"] = command.model
    if trainer.is_world_process_zero():
        print(format_report(report))
        path = Path(command.output or f"{Path(command.model).name}-{command.dataset}-{command.split}.json")
        write_json(report, path)
        print(f"\nWritten to {path}.")
    trainer.accelerator.end_training()
    return report


def evaluation_report(matrix: Tensor, labels: LabelInfo, split: str, num_images: int) -> dict[str, Any]:
    """Scores of a confusion matrix with names: fractions of 1, None for a class that neither truth nor network has."""
    scores = scores_from_confusion_matrix(matrix)
    classes = {
        name: {
            "iou": _or_none(scores["per_category_iou"][index]),
            "accuracy": _or_none(scores["per_category_accuracy"][index]),
        }
        for index, name in labels.id2label.items()
    }
    return {
        "dataset": labels.name,
        "split": split,
        "num_images": num_images,
        "mean_iou": float(scores["mean_iou"]),
        "mean_accuracy": float(scores["mean_accuracy"]),
        "overall_accuracy": float(scores["overall_accuracy"]),
        "classes": classes,
        "confusion_matrix": matrix.tolist(),
    }


def _or_none(value: float) -> float | None:
    value = float(value)
    return None if value != value else value


def format_report(report: dict[str, Any]) -> str:
    """The report as a table of percentages."""

    def percent(value: float | None) -> str:
        return "     -" if value is None else f"{100 * value:6.2f}"

    width = max(len(name) for name in (*report["classes"], "mean class accuracy"))
    lines = [f"{report['dataset']} {report['split']}, {report['num_images']} images, %"]
    lines.append(f"{'class':{width}}     IoU  accuracy")
    for name, scores in report["classes"].items():
        lines.append(f"{name:{width}}  {percent(scores['iou'])}    {percent(scores['accuracy'])}")
    lines.append("")
    for name, key in (
        ("mIoU", "mean_iou"),
        ("mean class accuracy", "mean_accuracy"),
        ("pixel accuracy", "overall_accuracy"),
    ):
        lines.append(f"{name:{width}}  {percent(report[key])}")
    return "\n".join(lines)


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write a report for people and programs to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
