"""`hf-segkd evaluate`: scores a network, class by class."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hf_segkd.commands.command_line import DataFlags, TileFlags, parse_arguments
from hf_segkd.data import label_info
from hf_segkd.evaluation.image_counts import write_image_counts
from hf_segkd.evaluation.reports import evaluation_report, format_report, write_json
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.networks import with_taps
from hf_segkd.networks.loading import load_network
from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.trainer import DistillationTrainer


@dataclass(kw_only=True)
class EvaluationCommand(TileFlags, DataFlags):
    """Flags: the network to evaluate, and the data."""

    model: str = field(metadata={"help": "Folder or Hub id of the network."})
    split: str = field(default="val", metadata={"help": "Split to evaluate on."})
    batch_size: int = field(default=1, metadata={"help": "Images per device and step."})
    num_workers: int = field(default=0, metadata={"help": "Processes that load images."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU."})
    output: str | None = field(
        default=None, metadata={"help": "JSON file to write; by default MODEL-DATASET-SPLIT.json."}
    )
    image_counts: str | None = field(
        default=None,
        metadata={
            "help": "Write the confusion matrix of each image too, as an .npz file of image_ids (n) and counts "
            "(n, k, k): rows are the truth, columns the prediction."
        },
    )


def main(args: list[str] | None = None) -> RunReport:
    """Evaluate a network, print the table, write the JSON file and return what is in it."""
    (command,) = parse_arguments(EvaluationCommand, args=args)
    path = Path(command.output or f"{Path(command.model).name}-{command.dataset}-{command.split}.json")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and --output takes the JSON file to write.")
    dataset = command.load(command.split)
    labels = label_info(dataset)
    model, processor = load_network(command.model, labels)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = DistillationTrainer(
            model=with_taps(model),  # also turns masks with classes into logits
            args=DistillationArguments(
                output_dir=scratch,
                per_device_eval_batch_size=command.batch_size,
                dataloader_num_workers=command.num_workers,
                eval_tile=command.tile,
                eval_overlap=command.overlap,
                use_cpu=command.use_cpu,
            ),
            eval_dataset=dataset,
            processing_class=processor,
        )
        counts = None
        if command.image_counts is None:
            trainer.evaluate()
        else:
            counts = trainer.predict(dataset).predictions
    report = evaluation_report(trainer.confusion_matrix, labels, str(dataset.split), len(dataset))
    tiles = {} if command.tile is None else {"tile": command.tile, "overlap": command.overlap}
    report = report.extended(model=command.model, data=command.source(command.split) | tiles)
    if trainer.is_world_process_zero():
        print(format_report(report))
        write_json(report.to_json(), path)
        print(f"\nWritten to {path}.")
        if counts is not None:
            write_image_counts(Path(command.image_counts), counts, dataset.with_format(None)["image_id"])
    trainer.accelerator.end_training()
    return report
