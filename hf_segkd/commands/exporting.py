"""`scripts/export.py`: a network as an ONNX or torch.export file, checked on real images and timed."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES

from hf_segkd.command_line import parse_arguments
from hf_segkd.commands.data_flags import DataFlags
from hf_segkd.commands.networks import load_network
from hf_segkd.data import EvaluationDataset, evenly_spread, label_info
from hf_segkd.export import run_onnx
from hf_segkd.export.graph import OPSET, DenseNetwork, save_onnx, save_program, trace
from hf_segkd.export.latency import file_mb, latency_report, onnx_variant, pytorch_variants
from hf_segkd.export.metadata import check_description, describe, describe_onnx, fixed_size, versions, with_size
from hf_segkd.export.parity import Parity, check_parity, compare
from hf_segkd.export.quantization import quantize
from hf_segkd.export.runtimes import Network, onnx_network, program_network
from hf_segkd.inference import predict
from hf_segkd.publishing.publication import weights_sha256
from hf_segkd.reports import table, write_json

FILES = {"onnx": "model.onnx", "torch_export": "model.pt2", "onnx-int8": "model-int8.onnx"}
SNIPPET = "run_onnx.py"
REPORT = "export.json"


@dataclass(kw_only=True)
class ExportCommand(DataFlags):
    """What to export, and the images to check it on."""

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
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 2):
            # PyTorch can't resize to 1 x 1.
            raise ValueError(f"--image_size takes height and width in pixels, from 2, got {self.image_size}.")
        for given in fields(self):
            of_int8 = given.name in ("calibration_split", "calibration_images", "max_int8_loss")
            if of_int8 and not self.int8 and getattr(self, given.name) != given.default:
                raise ValueError(f"--{given.name} is for the file of --int8, which is not asked for.")
        if self.teacher is not None and self.latency_runs == 0:
            raise ValueError("--teacher is timed beside the network, and --latency_runs 0 times nothing.")
        for name, least in (("num_images", 1), ("calibration_images", 1), ("latency_runs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}.")

    def folder(self) -> Path:
        """Where the files go."""
        if self.output is not None:
            return Path(self.output)
        model = Path(self.model)
        return model / self.format if model.is_dir() else Path(f"{model.name}-{self.format}")


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Export a network, check and time it, print the tables, write export.json and return what is in it.

    Raises:
        ValueError: If the exported network is not the one it was made from, or int8 costs too much; with the numbers.
            Nothing is written then, and an earlier export stays.
    """
    (command,) = parse_arguments(ExportCommand, args=args)
    folder = command.folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as scratch:
        report = Export(command, Path(scratch)).run()
        folder.mkdir(exist_ok=True)
        for name in (*FILES.values(), SNIPPET, REPORT):
            (folder / name).unlink(missing_ok=True)  # of an earlier export
        for file in Path(scratch).iterdir():
            os.replace(file, folder / file.name)
    print(f"\nWritten to {folder}.")
    return report


class Export:
    """One run of the command.

    Args:
        command: What to do.
        scratch: Folder for the files while nothing is known of them.

    Raises:
        ValueError: If the network does not fit the data set, the size of images is not known, or the image processor
            does what a user of the exported file could not do.
    """

    def __init__(self, command: ExportCommand, scratch: Path) -> None:
        self.command = command
        self.scratch = scratch
        self.images = evenly_spread(command.load(command.split), command.num_images)
        self.weights_sha256 = weights_sha256(Path(command.model))
        self.model, self.processor = load_network(command.model, label_info(self.images))
        if command.image_size is not None:
            self.processor = with_size(self.processor, tuple(command.image_size))
        elif fixed_size(self.processor) is None and not command.dynamic:
            raise ValueError(
                f"The image processor of {command.model!r} does not resize to one height and width. Pass --image_size "
                "HEIGHT WIDTH, or --dynamic for a file that takes images of any size."
            )
        self.network = dense_network(self.model, command.argmax)
        self.teacher = None
        if command.teacher is not None and command.latency_runs:
            self.teacher = dense_network(load_network(command.teacher)[0], command.argmax)
        self.facts = describe(self.model, self.processor, self.network.output_name)
        check_description(self.facts, self.processor, (row["image"] for row in self.images))
        self.samples = EvaluationDataset(self.images, self.processor)
        self.example = self.samples[0]["pixel_values"][None]

    def run(self) -> dict[str, Any]:
        """Write and check the files, and time them."""
        exports = [self.write()]
        if self.command.int8:
            exports.append(self.write_int8())
        if self.command.format == "onnx":
            exports[0]["snippet_agreement"] = self.write_snippet()
        print(exports_table(exports))
        latency = self.time() if self.command.latency_runs else None
        report = {"exports": exports, "latency": latency, "versions": versions()}
        report["weights_sha256"] = self.weights_sha256  # by which publishing knows that they belong together
        write_json(report, self.scratch / REPORT)
        return report

    def write(self) -> dict[str, Any]:
        """The file in fp32."""
        command, path = self.command, self.scratch / FILES[self.command.format]
        program = trace(self.network, tuple(self.example.shape[-2:]), command.dynamic)
        if command.format == "onnx":
            save_onnx(program, path, self.network.output_name, command.dynamic)
            describe_onnx(path, self.facts)
            exported = onnx_network(path)
        else:
            save_program(program, path, self.facts)
            exported = program_network(path)
        parity = self.compare(exported)
        check_parity(parity, path.name)
        if command.dynamic:
            parity = worst_of(parity, self.compare_at_another_size(exported, path.name))
        return self.entry(command.format, parity)

    def write_int8(self) -> dict[str, Any]:
        """The ONNX file in int8."""
        path = self.scratch / FILES["onnx-int8"]
        training = evenly_spread(self.command.load(self.command.calibration_split), self.command.calibration_images)
        samples = EvaluationDataset(training, self.processor)
        quantize(self.scratch / FILES["onnx"], path, (samples[index]["pixel_values"] for index in range(len(samples))))
        describe_onnx(path, self.facts)
        parity = self.compare(onnx_network(path))
        loss = 100 * (parity.miou - parity.miou_exported)
        if not loss <= self.command.max_int8_loss:  # not so for nan, too
            raise ValueError(
                f"int8 costs {loss:.2f} points of mIoU ({100 * parity.miou:.2f} to {100 * parity.miou_exported:.2f} % "
                f"on {parity.images} images, {100 * parity.argmax_agreement:.2f} % of the pixels alike), and "
                f"--max_int8_loss allows {self.command.max_int8_loss:g}, so nothing was written. Calibrate on more "
                "images, or export without --int8."
            )
        return self.entry("onnx-int8", parity)

    def compare(self, exported: Network, samples: EvaluationDataset | None = None, batch_size: int = 1) -> Parity:
        """The exported network beside the original one."""
        return compare(self.network, exported, samples or self.samples, self.model.config.num_labels, batch_size)

    def compare_at_another_size(self, exported: Network, name: str) -> Parity:
        """Batches of three images, larger by a quarter and of odd height and width."""
        height, width = self.example.shape[-2:]
        larger = with_size(self.processor, (5 * height // 4 | 1, 5 * width // 4 | 1))
        try:
            parity = self.compare(exported, EvaluationDataset(self.images, larger), batch_size=3)
        except Exception as error:  # each runtime has its own
            raise ValueError(
                f"{name} does not run with several images or at another size than {width} x {height}, although it was "
                f"made with --dynamic. Export it for one size, without --dynamic. The runtime says: {error}"
            ) from error
        check_parity(parity, f"{name}, in batches and at another size,")
        return parity

    def entry(self, name: str, parity: Parity) -> dict[str, Any]:
        """A file as export.json describes it."""
        return {
            "format": name,
            "file": FILES[name],
            "file_mb": file_mb(self.scratch / FILES[name]),
            "argmax": self.command.argmax,
            "dynamic": self.command.dynamic,
            "opset": None if name == "torch_export" else OPSET,
            "parity": asdict(parity),
            "dataset": label_info(self.images).name,
            "split": self.command.split,
            "image_size": list(self.example.shape[-2:]),
        }

    def write_snippet(self) -> float:
        """A program that runs the ONNX file; returns for which share of the pixels it gives PyTorch's class."""
        source = Path(run_onnx.__file__).read_text()
        (self.scratch / SNIPPET).write_text(source)
        session, facts = run_onnx.load(self.scratch / FILES["onnx"])
        same, pixels = 0, 0
        for row in self.images:
            mask = run_onnx.segment(session, facts, row["image"])
            same += int((predict(self.model, self.processor, row["image"]).numpy() == mask).sum())
            pixels += mask.size
        print(source)
        print(f"# {SNIPPET}, above, gives {100 * same / pixels:.3f} % of the pixels the class that PyTorch gives.\n")
        return same / pixels

    def time(self) -> dict[str, Any]:
        """Latencies of the network, and of the teacher if there is one."""
        onnx = self.command.format == "onnx"
        variants = pytorch_variants("student", self.network, self.example)
        if onnx:
            variants.append(onnx_variant("student", "ONNX Runtime", self.scratch / FILES["onnx"]))
        if self.command.int8:
            variants.append(onnx_variant("student", "ONNX Runtime int8", self.scratch / FILES["onnx-int8"]))
        if self.teacher is not None:
            variants += pytorch_variants("teacher", self.teacher, self.example)
            if onnx:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder, FILES["onnx"])
                    save_onnx(trace(self.teacher, tuple(self.example.shape[-2:])), path, self.teacher.output_name)
                    variants.append(onnx_variant("teacher", "ONNX Runtime", path))
        report = latency_report(variants, self.example, self.command.latency_runs)
        print(f"\n{latency_table(report)}")
        return report


def dense_network(model: PreTrainedModel, argmax: bool) -> DenseNetwork:
    """The network as it is exported.

    Raises:
        ValueError: If it predicts masks and their classes.
    """
    if model.config.model_type in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES:
        raise ValueError(
            f"{type(model).__name__} predicts masks and their classes and is not exported: only networks that give "
            "logits for each pixel are. Distil a student from it and export that."
        )
    return DenseNetwork(model, argmax)


def worst_of(first: Parity, second: Parity) -> Parity:
    """The mIoU of the first with the larger deviations of both."""
    differences = [part.max_logit_difference for part in (first, second)]
    return replace(
        first,
        max_logit_difference=None if None in differences else max(differences),
        argmax_agreement=min(first.argmax_agreement, second.argmax_agreement),
    )


def exports_table(exports: list[dict[str, Any]]) -> str:
    """What was exported and how close it is."""
    rows = []
    for export in exports:
        parity = export["parity"]
        difference = parity["max_logit_difference"]
        rows.append(
            [
                export["file"],
                f"{export['file_mb']:.2f}",
                str(parity["images"]),
                "-" if difference is None else f"{difference:.1e}",
                f"{100 * parity['argmax_agreement']:.3f}",
                f"{100 * parity['miou']:.2f}",
                f"{100 * parity['miou_exported']:.2f}",
            ]
        )
    return table(["file", "MB", "images", "max logit diff.", "same class %", "mIoU %", "exported mIoU %"], rows)


def latency_table(report: dict[str, Any]) -> str:
    """How long an image takes."""
    height, width = report["image_size"]
    rows = [
        [
            row["network"],
            row["runtime"],
            f"{row['median_ms']:.2f}",
            f"{row['p95_ms']:.2f}",
            f"{row['file_mb']:.2f}",
        ]
        for row in report["rows"]
    ]
    return (
        f"{report['device']}, threads: {report['threads']}, one image of {width} x {height}, {report['runs']} runs in "
        f"turns\n\n{table(['network', 'runtime', 'median ms', '95th percentile ms', 'MB'], rows)}"
    )
