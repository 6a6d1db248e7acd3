"""`hf-segkd count_statistics`: computes mean and standard deviation of each channel of the training images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_segkd.commands.command_line import DataFlags, parse_arguments
from hf_segkd.data.statistics import count_statistics, processor_values
from hf_segkd.evaluation.reports import table, write_json


@dataclass(kw_only=True)
class StatisticsCommand(DataFlags):
    """Flags: the images to count."""

    split: str = field(
        default="train", metadata={"help": "Split to count: what is evaluated on must not decide how images are seen."}
    )
    output: str = field(default="image_statistics.json", metadata={"help": "JSON file for --image_statistics."})


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Count, print the table, write the JSON file and return what is in it."""
    (command,) = parse_arguments(StatisticsCommand, args=args)
    path = Path(command.output)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and --output takes the JSON file to write.")
    dataset = command.load(command.split)
    statistics = count_statistics(dataset)
    columns = zip(statistics.mean, statistics.std, statistics.smallest, statistics.largest, strict=True)
    rows = [[str(channel), *(f"{number:.6g}" for number in row)] for channel, row in enumerate(columns, start=1)]
    print(table(["channel", "mean", "std", "smallest", "largest"], rows))
    print(f"\n{statistics.num_images} images, {statistics.num_pixels:,} pixels, in the units of the files.")
    report = {
        **processor_values(statistics, dataset),
        "num_images": statistics.num_images,
        "num_pixels": statistics.num_pixels,
        "data": command.source(command.split),
    }
    write_json(report, path)
    print(f"Written to {path}: train with --image_statistics {path}.")
    return report
