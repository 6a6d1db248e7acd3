"""What a model card tells of a network, and its text: what was measured, beside what it was measured against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class CardFacts:
    """Everything the card tells; JSON-like, so that it can be gathered once and rendered anywhere.

    Reports are those of `evaluation_report`, with what the training command adds (method, seed, steps ...).

    Args:
        repo_id: "user/name" on the Hub, or a bare name.
        architecture: E.g. "DeepLabV3+ (MobileNetV2 x 0.35, output stride 16)".
        id2label: Class id to name.
        method: Name in `LOSSES`, several joined by ",", or "none" for training on the labels alone.
        method_kwargs: The method's arguments.
        dataset: Name as `load_segmentation_dataset` knows it, or what the user calls the data set.
        dataset_id: Its Hub id, where it has one.
        dataset_license: What the user says of the licence of a data set that `data/licences.py` does not know.
        teacher: What the user calls the teacher. Of a path only the last part is shown.
        teacher_id: The teacher's Hub id; None says that it is not published.
        license: The network's licence, by the user; never assumed.
        report: Report of the published network; None says that it was not evaluated.
        runs: Reports of this method with all its seeds, this network's included.
        baseline_runs: Reports of the same student trained on the labels alone.
        teacher_report: Report of the teacher.
        costs: One entry per network: "network" ("student" or "teacher"), "parameters", "macs", "image_size" [h, w],
            "file_mb" (or None).
        export: What `scripts/export.py` writes to export.json.
        settings: Training arguments; what differs from `defaults` is listed first.
        defaults: Defaults of the training arguments.
        versions: Package -> version.
        pictures: Files in the repository that show image, truth, teacher and student.
        pictures_note: Why there are no pictures, where there are none.
        chart: File in the repository with the bar chart of the classes.
        self_contained: Whether the repository holds the code, for `trust_remote_code=True`.
        space_id: Hub id of a Space that runs the network.
    """

    repo_id: str
    architecture: str
    id2label: dict[int, str]
    method: str
    method_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset: str
    dataset_id: str | None = None
    dataset_license: str | None = None
    teacher: str | None = None
    teacher_id: str | None = None
    license: str | None = None
    report: dict[str, Any] | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    baseline_runs: list[dict[str, Any]] = field(default_factory=list)
    teacher_report: dict[str, Any] | None = None
    costs: list[dict[str, Any]] = field(default_factory=list)
    export: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    pictures_note: str | None = None
    chart: str | None = None
    self_contained: bool = False
    space_id: str | None = None
