"""`hf-segkd export`: writes a network as files for other runtimes, checked on real images and timed."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_segkd.commands.command_line import DataFlags, parse_arguments
from hf_segkd.commands.export_files import FILES, Export
from hf_segkd.export import REPORT, SNIPPET
from hf_segkd.export.formats import DEVICE_FORMATS, INT8_FORMATS, METADATA, int8_file
from hf_segkd.export.opsets import OPSET, check_opset
from hf_segkd.export.parity import exports_table

FORMATS = ("onnx", "torch_export", *DEVICE_FORMATS)
# All that an export may have left in a folder, the report last.
LEFT_OVER = (
    *FILES.values(),
    *(made.file for made in DEVICE_FORMATS.values()),
    *(int8_file(DEVICE_FORMATS[name].file) for name in INT8_FORMATS if name in DEVICE_FORMATS),
    *("model.bin", METADATA, SNIPPET, REPORT),
)


@dataclass(kw_only=True)
class ExportCommand(DataFlags):
    """Flags: the network to export, and the images to check it on."""

    model: str = field(metadata={"help": "Folder or Hub id of the network."})
    format: list[str] = field(
        metadata={
            "help": "ONNX, a .pt2 file of torch.export, or a format for devices; several are timed in one run.",
            "choices": FORMATS,
        }
    )
    opset: int = field(default=OPSET, metadata={"help": "Version of ONNX's operations, for older runtimes from 16."})
    argmax: bool = field(default=False, metadata={"help": "Give the class of each pixel, uint8, instead of logits."})
    dynamic: bool = field(default=False, metadata={"help": "Take batches and images of any size."})
    int8: bool = field(
        default=False,
        metadata={"help": f"Also write files in 8-bit integers, of the formats {', '.join(INT8_FORMATS)}."},
    )
    int8_steps: int = field(
        default=0,
        metadata={
            "help": "Steps in which a copy of the network learns from its fp32 logits to compute in int8, e.g. 300; 0 "
            "takes ranges from images alone."
        },
    )
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Height and width of images; by default what the image processor resizes to."}
    )
    split: str = field(default="val", metadata={"help": "Split that the exported network is checked on."})
    num_images: int = field(default=32, metadata={"help": "How many of its images, evenly spread."})
    calibration_split: str = field(
        default="train", metadata={"help": "Split that int8 ranges are taken from, and that --int8_steps learn on."}
    )
    calibration_images: int = field(default=64, metadata={"help": "How many of its images, evenly spread."})
    max_int8_loss: float = field(
        default=2.0, metadata={"help": "Points of mIoU that int8 may cost; if it costs more, nothing is written."}
    )
    teacher: str | None = field(default=None, metadata={"help": "Folder or Hub id of a network to time beside it."})
    latency_runs: int = field(default=50, metadata={"help": "Timed runs of each network and runtime; 0 times none."})
    compile_seconds: int = field(
        default=120, metadata={"help": "After how long torch.compile is given up and not timed; 0 leaves it out."}
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "Folder to write to, of several formats with a folder for each; by default MODEL/FORMAT, or "
            "NAME-FORMAT for a Hub id."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.format)) < len(self.format):
            raise ValueError(f"--format names one twice: {' '.join(self.format)}.")
        if self.opset != OPSET and "onnx" not in self.format:
            raise ValueError(f"--opset is of ONNX files; it does not go with --format {' '.join(self.format)}.")
        if self.int8 and not set(self.format) & set(INT8_FORMATS):
            raise ValueError(
                f"--int8 makes files of the formats {', '.join(INT8_FORMATS)}; it does not go with --format "
                f"{' '.join(self.format)}."
            )
        check_opset(self.opset)
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 2):  # 1 x 1 fails
            raise ValueError(f"--image_size takes height and width in pixels, from 2, got {self.image_size}.")
        for name in ("int8_steps", "calibration_split", "calibration_images", "max_int8_loss"):
            if not self.int8 and getattr(self, name) != getattr(ExportCommand, name):
                raise ValueError(f"--{name} is for the files of --int8, which is not asked for.")
        if self.teacher is not None and self.latency_runs == 0:
            raise ValueError("--teacher is timed beside the network, and --latency_runs 0 times nothing.")
        images = 2 if self.dynamic else 1  # one would leave batches unchecked
        least_values = {
            "num_images": images,
            "calibration_images": 1,
            "int8_steps": 0,
            "latency_runs": 0,
            "compile_seconds": 0,
        }
        for name, least in least_values.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        for folder in map(self.folder, self.format):
            if folder.is_file():
                raise ValueError(f"{folder} is a file, and --output takes the folder to write to.")

    def folder(self, name: str) -> Path:
        """The folder that the files of a format are written to."""
        if self.output is not None:
            return Path(self.output) if len(self.format) == 1 else Path(self.output, name)
        model = Path(self.model)
        return model / name if model.is_dir() else Path(f"{model.name}-{name}")


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Export a network, check and time it, print the tables, write export.json and return what is in it.

    Files and report are there before the timing begins, which may be interrupted.

    Raises:
        ValueError: If an exported network differs from the original, its runtime does not take it, or int8 costs too
            much; the message has the numbers. Nothing of its format is written then, and an earlier export stays.
    """
    (command,) = parse_arguments(ExportCommand, args=args)
    export = Export(command)
    absolute = command.folder(command.format[0]).absolute()
    near = next(parent for parent in absolute.parents if parent.is_dir())  # mostly on the same file system
    with tempfile.TemporaryDirectory(prefix=".export-", dir=near) as scratch:
        report = export.write(Path(scratch))
        for name in export.exports:
            move(Path(scratch, name), command.folder(name))
    print(f"{exports_table(report['exports'])}\n")
    for name in export.exports:
        print(f"Written to {command.folder(name)}.")
    if command.latency_runs:
        export.time(report)
    if export.refused:
        raise ValueError("\n".join(export.refused.values()))
    return report


def move(source: Path, folder: Path) -> None:
    """Put new files into a folder, in place of those of an earlier export."""
    folder.mkdir(parents=True, exist_ok=True)
    # The report is deleted first and written last, so that it never lists files that do not exist.
    for name in reversed(LEFT_OVER):
        old = folder / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    for name in LEFT_OVER:
        if (source / name).exists():
            os.replace(source / name, folder / name)
