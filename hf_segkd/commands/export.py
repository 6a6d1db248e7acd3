"""`hf-segkd export`: writes a network as an ONNX or torch.export file, checked on real images and timed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hf_segkd.commands.command_line import DataFlags, parse_arguments
from hf_segkd.data import EvaluationDataset, evenly_spread, label_info
from hf_segkd.data.image_processors import fixed_size
from hf_segkd.evaluation.reports import versions, write_json
from hf_segkd.export import REPORT, SNIPPET, run_onnx
from hf_segkd.export.graph import OPSET, DenseNetwork, check_takes, save_onnx, save_program, trace
from hf_segkd.export.latency import (
    file_mb,
    latency_report,
    latency_table,
    onnx_variant,
    pytorch_variants,
    traced_variants,
)
from hf_segkd.export.metadata import PACKAGES, check_description, describe, describe_onnx, with_size
from hf_segkd.export.parity import Parity, check_int8_loss, check_parity, compare, exports_table, other_sizes, worst_of
from hf_segkd.export.quantization import quantize
from hf_segkd.export.runtimes import onnx_network, program_network, require_extra
from hf_segkd.networks import predicts_masks, with_taps
from hf_segkd.networks.channels import check_images, check_teacher
from hf_segkd.networks.inference import predict
from hf_segkd.networks.loading import load_network
from hf_segkd.publishing.publication import weights_sha256

FILES = {"onnx": "model.onnx", "torch_export": "model.pt2", "onnx-int8": "model-int8.onnx"}


@dataclass(kw_only=True)
class ExportCommand(DataFlags):
    """Flags: the network to export, and the images to check it on."""

    model: str = field(metadata={"help": "Folder or Hub id of the network."})
    format: Literal["onnx", "torch_export"] = field(metadata={"help": "ONNX, or a .pt2 file of torch.export."})
    argmax: bool = field(default=False, metadata={"help": "Give the class of each pixel, uint8, instead of logits."})
    dynamic: bool = field(default=False, metadata={"help": "Take batches and images of any size."})
    int8: bool = field(default=False, metadata={"help": "Also write an ONNX file quantised to 8-bit integers."})
    image_size: list[int] | None = field(
        default=None, metadata={"help": "Height and width of images; by default what the image processor resizes to."}
    )
    split: str = field(default="val", metadata={"help": "Split that the exported network is checked on."})
    num_images: int = field(default=32, metadata={"help": "How many of its images, evenly spread."})
    calibration_split: str = field(default="train", metadata={"help": "Split that int8 ranges are taken from."})
    calibration_images: int = field(default=64, metadata={"help": "How many of its images, evenly spread."})
    max_int8_loss: float = field(
        default=2.0, metadata={"help": "Points of mIoU that int8 may cost; if it costs more, nothing is written."}
    )
    teacher: str | None = field(default=None, metadata={"help": "Folder or Hub id of a network to time beside it."})
    latency_runs: int = field(default=50, metadata={"help": "Timed runs of each network and runtime; 0 times none."})
    output: str | None = field(
        default=None, metadata={"help": "Folder to write to; by default MODEL/FORMAT, or NAME-FORMAT for a Hub id."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.int8 and self.format != "onnx":
            raise ValueError(f"--int8 quantises ONNX files; it does not go with --format {self.format}.")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 2):  # 1 x 1 fails
            raise ValueError(f"--image_size takes height and width in pixels, from 2, got {self.image_size}.")
        for name in ("calibration_split", "calibration_images", "max_int8_loss"):
            if not self.int8 and getattr(self, name) != getattr(ExportCommand, name):
                raise ValueError(f"--{name} is for the file of --int8, which is not asked for.")
        if self.teacher is not None and self.latency_runs == 0:
            raise ValueError("--teacher is timed beside the network, and --latency_runs 0 times nothing.")
        images = 2 if self.dynamic else 1  # one would leave batches unchecked
        for name, least in (("num_images", images), ("calibration_images", 1), ("latency_runs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        if self.folder().is_file():
            raise ValueError(f"{self.folder()} is a file, and --output takes the folder to write to.")

    def folder(self) -> Path:
        """The folder that the files are written to."""
        if self.output is not None:
            return Path(self.output)
        model = Path(self.model)
        return model / self.format if model.is_dir() else Path(f"{model.name}-{self.format}")


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Export a network, check and time it, print the tables, write export.json and return what is in it.

    Raises:
        ValueError: If the exported network differs from the original, or int8 costs too much; the message has the
            numbers. Nothing is written then, and an earlier export stays.
    """
    (command,) = parse_arguments(ExportCommand, args=args)
    export = Export(command)
    folder = command.folder()
    near = next(parent for parent in folder.absolute().parents if parent.is_dir())  # mostly on the same file system
    with tempfile.TemporaryDirectory(prefix=".export-", dir=near) as scratch:
        report = export.run(Path(scratch))
        folder.mkdir(parents=True, exist_ok=True)
        # The report is deleted first and written last, so that it never lists files that do not exist.
        names = (*FILES.values(), SNIPPET, REPORT)
        for name in reversed(names):
            (folder / name).unlink(missing_ok=True)  # from an earlier export
        for name in names:
            if Path(scratch, name).is_file():
                os.replace(Path(scratch, name), folder / name)
    print(f"\nWritten to {folder}.")
    return report


class Export:
    """One run of the command.

    Args:
        command: The flags.

    Raises:
        ImportError: If packages of the extra `export` are needed and missing.
        ValueError: If the network gives no logits or does not fit the data set, the size of images is not known or not
            one that the network and the teacher take, or the image processor does what a user of the exported file
            could not do.
    """

    def __init__(self, command: ExportCommand) -> None:
        self.command = command
        if command.format == "onnx":
            require_extra()
        self.images = evenly_spread(command.load(command.split), command.num_images)
        self.weights_sha256 = weights_sha256(Path(command.model))
        self.model, self.processor = load_network(command.model, label_info(self.images))
        if predicts_masks(self.model.config):
            raise ValueError(
                f"{type(self.model).__name__} predicts masks and their classes and is not exported: only networks that "
                "give logits for each pixel are. Distil a student from it and export that."
            )
        check_images(self.model.config, self.processor, self.images)
        if command.image_size is not None:
            self.processor = with_size(self.processor, tuple(command.image_size))
        elif fixed_size(self.processor) is None and not command.dynamic:
            raise ValueError(
                f"The image processor of {command.model!r} does not resize to one height and width. Pass --image_size "
                "HEIGHT WIDTH, or --dynamic for a file that takes images of any size."
            )
        self.network = DenseNetwork(self.model, command.argmax)
        self.facts = describe(self.model, self.processor, self.network.output_name)
        check_description(self.facts, self.processor, (row["image"] for row in self.images))
        self.samples = EvaluationDataset(self.images, self.processor)
        self.example = self.samples[0]["pixel_values"][None]
        check_takes(self.network, self.example)
        if command.int8:
            training = evenly_spread(command.load(command.calibration_split), command.calibration_images)
            self.calibration = EvaluationDataset(training, self.processor)
        if command.teacher is not None:
            teacher, _ = load_network(command.teacher)
            check_teacher(teacher.config, self.model.config)
            # With features, masks with classes become logits.
            teacher = with_taps(teacher) if predicts_masks(teacher.config) else teacher
            self.teacher = DenseNetwork(teacher, command.argmax)
            check_takes(self.teacher, self.example)

    def run(self, scratch: Path) -> dict[str, Any]:
        """Write the files into a folder, check and time them."""
        command, files = self.command, {name: scratch / file for name, file in FILES.items()}
        channels, *size = self.example.shape[1:]
        program = trace(self.network, tuple(size), command.dynamic, channels)
        if command.format == "onnx":
            save_onnx(program, files["onnx"], self.network.output_name, command.dynamic)
            describe_onnx(files["onnx"], self.facts)
            exports = [self.checked("onnx", files["onnx"], check_parity)]
            exports[0]["snippet_agreement"] = self.write_snippet(scratch)
        else:
            save_program(program, files["torch_export"], self.facts)
            exports = [self.checked("torch_export", files["torch_export"], check_parity)]
        if command.int8:
            quantize(files["onnx"], files["onnx-int8"], self.calibration)
            describe_onnx(files["onnx-int8"], self.facts)
            check = partial(check_int8_loss, allowed=command.max_int8_loss)
            exports.append(self.checked("onnx-int8", files["onnx-int8"], check))
        print(exports_table(exports))
        report = {
            "exports": exports,
            "latency": self.time(files) if command.latency_runs else None,
            "versions": versions(PACKAGES),
            "weights_sha256": self.weights_sha256,  # publishing checks by it that they belong together
        }
        write_json(report, scratch / REPORT)
        return report

    def checked(self, name: str, path: Path, check: Callable[[Parity, str], None]) -> dict[str, Any]:
        """A file as export.json describes it, once its comparison with the network has passed `check`."""
        network = program_network(path) if name == "torch_export" else onnx_network(path)
        (height, width), num_labels = self.example.shape[-2:], self.model.config.num_labels
        parity = compare(self.network, network, self.samples, num_labels)
        check(parity, path.name)
        if self.command.dynamic:
            for size in other_sizes(height, width):
                samples = EvaluationDataset(self.images, with_size(self.processor, size))
                try:
                    there = compare(self.network, network, samples, num_labels, batch_size=3)
                except Exception as error:  # each runtime raises its own kind
                    raise ValueError(
                        f"{path.name} does not run with several images or at another size than {width} x {height}, "
                        "although it was made with --dynamic. Export it for one size, without --dynamic. The runtime "
                        f"says: {error}"
                    ) from error
                check(there, f"{path.name}, in batches of images of {size[1]} x {size[0]},")
                parity = worst_of(parity, there)
        return {
            "format": name,
            "file": path.name,
            "file_mb": file_mb(path),
            "argmax": self.command.argmax,
            "dynamic": self.command.dynamic,
            "opset": None if name == "torch_export" else OPSET,
            "parity": asdict(parity),
            "dataset": label_info(self.images).name,
            "split": self.command.split,
            "image_size": [height, width],
        }

    def write_snippet(self, scratch: Path) -> float:
        """Write a program that runs the ONNX file; returns the share of pixels for which it gives PyTorch's class."""
        shutil.copyfile(run_onnx.__file__, scratch / SNIPPET)
        session, facts = run_onnx.load(scratch / FILES["onnx"])
        same, pixels = 0, 0
        for row in self.images:
            mask = run_onnx.segment(session, facts, row["image"])
            same += int((predict(self.model, self.processor, row["image"]).numpy() == mask).sum())
            pixels += mask.size
        print(f"{SNIPPET} gives {100 * same / pixels:.3f} % of the pixels of whole images the class PyTorch gives.\n")
        return same / pixels

    def time(self, files: dict[str, Path]) -> dict[str, Any]:
        """Latencies of the network, and of the teacher if there is one."""
        variants = pytorch_variants("student", self.network, self.example)
        if self.command.format == "onnx":
            variants.append(onnx_variant("student", "ONNX Runtime", files["onnx"]))
        if self.command.int8:
            variants.append(onnx_variant("student", "ONNX Runtime int8", files["onnx-int8"]))
        if self.command.teacher is not None:
            variants += pytorch_variants("teacher", self.teacher, self.example)
            if self.command.format == "onnx":
                variants += traced_variants("teacher", self.teacher, self.example)
        report = latency_report(variants, self.example, self.command.latency_runs)
        print(f"\n{latency_table(report)}")
        return report
