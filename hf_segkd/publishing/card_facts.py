"""`CardFacts`: what a model card says of a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_segkd.data import class_names
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.publishing.comparisons import check_comparable
from hf_segkd.types import Paper


@dataclass(kw_only=True)
class CardFacts:
    """Everything the card says, as plain values, so that it can be gathered once and rendered anywhere.

    Args:
        repo_id: "user/name" on the Hub, or a bare name.
        architecture: E.g. "DeepLabV3+ (MobileNetV2 x 0.35, output stride 16)".
        id2label: Class id to name.
        method: Name in `LOSSES`, several joined by ",", the name of a loss of the user's own, or "none" for training on
            the labels only; None says that it is not known how the network was trained.
        method_kwargs: The method's arguments.
        own_paper: Publication of a method that is not in `LOSSES`, where it has one.
        dataset: Data set that the network was trained on: its name in `load_segmentation_dataset`, or the user's name
            for it; None says that it is not known.
        dataset_id: Its Hub id, where it has one.
        dataset_license: What the user says of the licence of a data set that `data/licences.py` does not know.
        teacher: The teacher's architecture, or the user's name for it. Only the last part of an absolute path is shown.
        teacher_id: The teacher's Hub id, where it has one.
        license: The network's licence, as the user gives it; never assumed.
        report: Report of the published network; None says that it was not evaluated.
        runs: Reports of this method with all its seeds, this network's included.
        baseline_runs: Reports of the same student trained only on the labels.
        teacher_report: Report of the teacher.
        costs: One entry per network: "network" ("student" or "teacher"), "parameters", "macs", "image_size" [h, w],
            "file_mb" (or None).
        export: What `scripts/export.py` writes to export.json. Each of its "exports" may have the "dataset", "split"
            and "image_size" [h, w] it was checked on, and for how many pixels its program gives PyTorch's class,
            "snippet_agreement" (0..1).
        settings: Training arguments; what differs from `defaults` is listed first.
        defaults: Defaults of the training arguments.
        versions: Package -> version.
        pictures: Files in the repository that show image, truth, teacher and student.
        pictures_note: Why there are no pictures, where there are none.
        chart: File in the repository with the bar chart of the classes.
        self_contained: Whether the repository holds the code, for `trust_remote_code=True`.
        needs_package: Whether the network is one of `hf_segkd.models`, which transformers itself does not know.
        num_bands: Number of bands of images that are taken as they are stored; None for RGB pictures.
        javascript_size: Height and width of the images of the ONNX file that JavaScript runs; None where there is none.
        space_id: Hub id of a Space that runs the network.

    Raises:
        ValueError: If the report is of other classes, or reports cannot stand side by side (see
            `check_comparable`).
    """

    repo_id: str
    architecture: str
    id2label: dict[int, str]
    method: str | None
    method_kwargs: dict[str, Any] = field(default_factory=dict)
    own_paper: Paper | None = None
    dataset: str | None
    dataset_id: str | None = None
    dataset_license: str | None = None
    teacher: str | None = None
    teacher_id: str | None = None
    license: str | None = None
    report: RunReport | None = None
    runs: list[RunReport] = field(default_factory=list)
    baseline_runs: list[RunReport] = field(default_factory=list)
    teacher_report: RunReport | None = None
    costs: list[dict[str, Any]] = field(default_factory=list)
    export: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    pictures_note: str | None = None
    chart: str | None = None
    self_contained: bool = False
    needs_package: bool = True
    num_bands: int | None = None
    javascript_size: tuple[int, int] | None = None
    space_id: str | None = None

    def __post_init__(self) -> None:
        if self.report is None:
            return
        if list(self.report.classes) != self.class_names:
            raise ValueError(f"The report has the classes {list(self.report.classes)}, the network {self.class_names}.")
        check_comparable(self.report, runs=self.runs, baseline_runs=self.baseline_runs, teacher=self.teacher_report)
        self.runs = self.runs or [self.report]

    @property
    def method_names(self) -> list[str]:
        """Names of the losses; none for training on the labels only, or in a way that is not known."""
        return [] if self.method in (None, "none") else self.method.split(",")

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of the ids."""
        return class_names(self.id2label)

    @property
    def exports(self) -> list[dict[str, Any]]:
        """Exported files with their measurements."""
        return self.export["exports"] if self.export else []
