"""`Export`: one run of the export command: makes the files, checks and times them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.export import ExportedProgram
from torch.fx import GraphModule

from hf_segkd.data import EvaluationDataset, evenly_spread, label_info
from hf_segkd.data.image_processors import fixed_size
from hf_segkd.evaluation.reports import versions, write_json
from hf_segkd.export import REPORT, SNIPPET, openvino, run_onnx
from hf_segkd.export.formats import DEVICE_FORMATS, INT8_FORMATS, check_format, int8_file, load, write
from hf_segkd.export.graph import DenseNetwork, check_takes, save_onnx, save_program, trace
from hf_segkd.export.int8 import Int8Network, converted, distil, prepare
from hf_segkd.export.latency import (
    Missing,
    Variant,
    latency_report,
    latency_table,
    pytorch_variants,
    size_mb,
    traced_variants,
)
from hf_segkd.export.metadata import (
    DEVICE_PACKAGES,
    PACKAGES,
    check_description,
    describe,
    describe_onnx,
    with_size,
)
from hf_segkd.export.parity import Parity, check_int8_loss, check_parity, compare, exports_table, other_sizes, worst_of
from hf_segkd.export.quantization import make_unsigned, quantize
from hf_segkd.export.runtimes import Network, onnx_network, program_network, require_extra
from hf_segkd.networks import predicts_masks, with_taps
from hf_segkd.networks.channels import check_images, check_teacher
from hf_segkd.networks.inference import predict
from hf_segkd.networks.loading import load_network
from hf_segkd.publishing.publication import weights_sha256

if TYPE_CHECKING:
    from hf_segkd.commands.export import ExportCommand

FILES = {"onnx": "model.onnx", "torch_export": "model.pt2", "onnx-int8": int8_file("model.onnx")}
INT8 = "-int8"  # behind a format
Check = Callable[[Parity, str], None]


class Export:
    """One run of the command.

    Args:
        command: The flags.

    Attributes:
        exports: Format -> its entries in export.json, once it is written.
        refused: Format -> why it is not.

    Raises:
        ImportError: If packages that a format needs are missing.
        ValueError: If the network gives no logits or does not fit the data set, the size of images is not known or not
            one that the network and the teacher take, or the image processor does what a user of the exported file
            could not do.
    """

    def __init__(self, command: ExportCommand) -> None:
        self.command = command
        self.exports: dict[str, list[dict[str, Any]]] = {}
        self.refused: dict[str, str] = {}
        for name in command.format:
            if name == "onnx":
                require_extra()
            elif name in DEVICE_FORMATS:
                check_format(name, command.dynamic, command.argmax)
        if command.int8 and (command.int8_steps or set(command.format) & set(DEVICE_FORMATS) & set(INT8_FORMATS)):
            require_extra("int8", "int8 files by training, and for devices,", ("torchao",))
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
            training = command.load(command.calibration_split)
            self.training = EvaluationDataset(training, self.processor)
            self.calibration = EvaluationDataset(evenly_spread(training, command.calibration_images), self.processor)
        if command.teacher is not None:
            teacher, _ = load_network(command.teacher)
            check_teacher(teacher.config, self.model.config)
            # With features, masks with classes become logits.
            teacher = with_taps(teacher) if predicts_masks(teacher.config) else teacher
            self.teacher = DenseNetwork(teacher, command.argmax)
            check_takes(self.teacher, self.example)

    def write(self, scratch: Path) -> dict[str, Any]:
        """Write and check the files of each format into a folder of its name, and the report without times.

        Raises:
            ValueError: If no format can be written; why one of several can't stands in `refused`.
        """
        channels, *size = self.example.shape[1:]
        program = trace(self.network, tuple(size), self.command.dynamic, channels)
        for name in self.command.format:
            folder = scratch / name
            folder.mkdir()
            try:
                self.exports[name] = self.written(name, program, folder)
            except ValueError as error:
                if len(self.command.format) == 1:
                    raise
                self.refused[name] = f"{name}: {error}"
        if not self.exports:
            raise ValueError("\n".join(self.refused.values()))
        for name in self.exports:
            write_json(self.report(name), scratch / name / REPORT)
        return self.report(*self.exports)

    def written(self, name: str, program: ExportedProgram, folder: Path) -> list[dict[str, Any]]:
        """The entries in export.json of a format that was written into a folder and passed its checks."""
        if name == "torch_export":
            path = folder / FILES[name]
            save_program(program, path, self.facts)
            return [self.checked(name, path, "torch.export", program_network(path))]
        if name == "onnx":
            return self.written_onnx(program, folder)
        path = write(name, self.network, program, folder, tuple(self.example.shape[1:]), self.facts)
        runtime = DEVICE_FORMATS[name].runtime
        if DEVICE_FORMATS[name].load is None:
            return [self.entry(name, path, runtime, "fp32", None)]
        entries = [self.checked(name, path, runtime, load(name, path))]
        if name == "openvino" and (precision := openvino.default_precision(path)) != "f32":
            # What users get who set nothing: measured, and not held to what holds for fp32.
            of_default = openvino.load_by_default(path)
            measured = partial(self.checked, name, path, f"{runtime} {precision}", of_default, lambda *_: None)
            entries.append(measured(precision=precision))
        if self.command.int8 and name in INT8_FORMATS:
            network, program = self.in_int8(rounded_weights=name != "litert")
            path = write(name, network, program, folder, tuple(self.example.shape[1:]), self.facts)
            entries.append(self.checked_int8(name, path, runtime, load(name, path)))
        return entries

    def written_onnx(self, program: ExportedProgram, folder: Path) -> list[dict[str, Any]]:
        """The same of ONNX, with its program and its int8."""
        command, path = self.command, folder / FILES["onnx"]
        save_onnx(program, path, self.network.output_name, command.dynamic, command.opset)
        describe_onnx(path, self.facts)
        entries = [self.checked("onnx", path, "ONNX Runtime", onnx_network(path))]
        entries[0]["snippet_agreement"] = self.write_snippet(folder)
        if command.int8:
            int8 = folder / FILES["onnx-int8"]
            if command.int8_steps:
                network, program = self.in_int8()
                save_onnx(program, int8, network.output_name, command.dynamic, command.opset)
                make_unsigned(int8)
            else:
                quantize(path, int8, self.calibration)
            describe_onnx(int8, self.facts)
            entries.append(self.checked_int8("onnx", int8, "ONNX Runtime", onnx_network(int8)))
        return entries

    def checked_int8(self, name: str, path: Path, runtime: str, network: Network) -> dict[str, Any]:
        """A file in int8 as export.json describes it, once it is known to cost no more than it may."""
        check = partial(check_int8_loss, allowed=self.command.max_int8_loss)
        return self.checked(f"{name}{INT8}", path, f"{runtime} int8", network, check, precision="int8")

    def in_int8(self, rounded_weights: bool = True) -> tuple[Int8Network, ExportedProgram]:
        """The network in int8, and its graph; `rounded_weights` as in `converted`."""
        network = converted(self.int8_graph, self.command.argmax, rounded_weights)
        return network, trace(network, tuple(self.example.shape[-2:]), self.command.dynamic, self.example.shape[1])

    @cached_property
    def int8_graph(self) -> GraphModule:
        """What all formats' files in int8 are made of, trained if that is asked for."""
        plain, steps = DenseNetwork(self.model), self.command.int8_steps
        program = trace(plain, tuple(self.example.shape[-2:]), self.command.dynamic, self.example.shape[1])
        graph = prepare(program, self.calibration)
        if steps:
            losses = distil(graph, plain, self.training, steps)
            first, last = (sum(part) / len(part) for part in (losses[:10], losses[-10:]))
            print(
                f"int8: {steps} steps, divergence from fp32 {first:.2g} at first, {last:.2g} at last (nats a pixel).\n"
            )
        return graph

    def checked(
        self,
        name: str,
        path: Path,
        runtime: str,
        network: Network,
        check: Check = check_parity,
        precision: str = "fp32",
    ) -> dict[str, Any]:
        """A file as export.json describes it, once its comparison with the network has passed `check`."""
        (height, width), num_labels = self.example.shape[-2:], self.model.config.num_labels
        parity = self.compared(path, runtime, network, self.samples)
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
        return self.entry(name, path, runtime, precision, parity)

    def compared(self, path: Path, runtime: str, network: Network, samples: EvaluationDataset) -> Parity:
        """The comparison of a file with the network, on images of the size it was made for."""
        try:
            return compare(self.network, network, samples, self.model.config.num_labels)
        except Exception as error:  # each runtime raises its own kind
            raise ValueError(f"{runtime} does not run {path.name}, so it was not kept. It says: {error}") from error

    def entry(self, name: str, path: Path, runtime: str, precision: str, parity: Parity | None) -> dict[str, Any]:
        """A file as export.json describes it; without `parity` it was not run."""
        made = path.parent.rglob("*") if name in DEVICE_FORMATS else [path]
        files = sorted(file.relative_to(path.parent).as_posix() for file in made if file.is_file())
        return {
            "format": name,
            "file": path.name,
            "files": files,
            "file_mb": size_mb(*(path.parent / file for file in files)),
            "runtime": runtime,
            "precision": precision,
            "argmax": self.command.argmax,
            "dynamic": self.command.dynamic,
            "opset": self.command.opset if name in ("onnx", "onnx-int8") else None,
            "parity": None if parity is None else asdict(parity),
            "dataset": label_info(self.images).name,
            "split": self.command.split,
            "image_size": list(self.example.shape[-2:]),
        }

    def write_snippet(self, folder: Path) -> float:
        """Write a program that runs the ONNX file; returns the share of pixels for which it gives PyTorch's class."""
        shutil.copyfile(run_onnx.__file__, folder / SNIPPET)
        session, facts = run_onnx.load(folder / FILES["onnx"])
        same, pixels = 0, 0
        for row in self.images:
            mask = run_onnx.segment(session, facts, row["image"])
            same += int((predict(self.model, self.processor, row["image"]).numpy() == mask).sum())
            pixels += mask.size
        print(f"{SNIPPET} gives {100 * same / pixels:.3f} % of the pixels of whole images the class PyTorch gives.\n")
        return same / pixels

    def report(self, *names: str, latency: dict[str, Any] | None = None) -> dict[str, Any]:
        """What export.json says of some formats."""
        more = self.command.int8_steps or set(names) & set(DEVICE_FORMATS)
        packages = (*PACKAGES, *DEVICE_PACKAGES) if more else PACKAGES
        return {
            "exports": [entry for name in names for entry in self.exports[name]],
            "latency": latency,
            "versions": versions(packages),
            "weights_sha256": self.weights_sha256,  # publishing checks by it that they belong together
        }

    def time(self, report: dict[str, Any]) -> None:
        """Add the latencies of the network, and of the teacher if there is one, to the reports.

        Raises:
            KeyboardInterrupt: If the user ends it; the files and their reports stay, which say what is missing.
        """
        try:
            latency = latency_report(self.variants(), self.example, self.command.latency_runs)
        except KeyboardInterrupt:
            print("\nThe timing was interrupted: the files are complete, and export.json has no times.")
            raise
        report["latency"] = latency
        for name in self.exports:
            write_json(self.report(name, latency=latency), self.command.folder(name) / REPORT)
        print(f"\n{exports_table(report['exports'], latency)}\n\n{latency_table(latency)}")

    def variants(self) -> list[Variant | Missing]:
        """What is timed."""
        seconds = self.command.compile_seconds
        variants = pytorch_variants("student", self.network, self.example, seconds)
        for name, entries in self.exports.items():
            for entry in entries:
                runtime, path = entry["runtime"], self.command.folder(name) / entry["file"]
                if entry["parity"] is None:
                    variants.append(Missing("student", runtime, "it runs on other systems only"))
                elif name != "torch_export":  # as fast as eager, which it runs
                    loads = self.loader(entry)
                    variants.append(Variant("student", runtime, loads(path), entry["file_mb"], loads, path))
        if self.command.teacher is not None:
            variants += pytorch_variants("teacher", self.teacher, self.example, seconds)
            if "onnx" in self.exports:
                variants += traced_variants("teacher", self.teacher, self.example)
        return variants

    @staticmethod
    def loader(entry: dict[str, Any]) -> Callable[[Path], Network]:
        """What loads a written file in its runtime."""
        name = entry["format"].removesuffix(INT8)
        if name == "onnx":
            return onnx_network
        if entry["precision"] not in ("fp32", "int8"):
            return openvino.load_by_default
        return DEVICE_FORMATS[name].load
