"""What a model card tells of a network, and its text: what was measured, beside what it was measured against."""

from __future__ import annotations

import html
import json
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from hf_segkd.data.licences import data_terms
from hf_segkd.losses import LOSSES
from hf_segkd.publishing.comparisons import check_comparable, gain_in_words
from hf_segkd.reports import mean_and_std, table

TEMPLATE = Path(__file__).with_name("model_card_template.md")
METRICS = {"mean_iou": "mIoU", "mean_accuracy": "mean class accuracy", "overall_accuracy": "pixel accuracy"}

# Settings that tell of a machine or an account and not of the training: by name, and by an absolute path or an access
# token in their value (as JSON, where a backslash is two).
SECRET_NAMES = re.compile(r"token|secret|password")
PRIVATE_NAMES = re.compile(rf"{SECRET_NAMES.pattern}|_dir$|^hub_|^push_to_hub|^trackio|^run_name$|^resume_from")
PRIVATE_VALUES = re.compile(r"(?<![\w.])[~/]|\b[A-Za-z]:\\|\\{4}|\bhf_\w{8,}")


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
        export: What `scripts/export.py` writes to export.json. Each of its "exports" may tell the "dataset", "split"
            and "image_size" [h, w] it was checked on, and for how many pixels its program gives PyTorch's class,
            "snippet_agreement" (0..1).
        settings: Training arguments; what differs from `defaults` is listed first.
        defaults: Defaults of the training arguments.
        versions: Package -> version.
        pictures: Files in the repository that show image, truth, teacher and student.
        pictures_note: Why there are no pictures, where there are none.
        chart: File in the repository with the bar chart of the classes.
        self_contained: Whether the repository holds the code, for `trust_remote_code=True`.
        needs_package: Whether the network is one of `hf_segkd.models`, which transformers alone does not know.
        space_id: Hub id of a Space that runs the network.

    Raises:
        ValueError: If a method is unknown, the report is of other classes, or reports cannot stand side by side (see
            `check_comparable`).
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
    needs_package: bool = True
    space_id: str | None = None

    def __post_init__(self) -> None:
        for name in self.method_names:
            if name not in LOSSES:
                raise ValueError(f"Unknown distillation method {name!r}. There are: {', '.join(LOSSES)}.")
        if self.report is None:
            return
        if list(self.report["classes"]) != self.class_names:
            raise ValueError(
                f"The report has the classes {list(self.report['classes'])}, the network {self.class_names}."
            )
        check_comparable(self.report, runs=self.runs, baseline_runs=self.baseline_runs, teacher=self.teacher_report)

    @property
    def method_names(self) -> list[str]:
        """Names of the losses; none for training on the labels alone."""
        return [] if self.method == "none" else self.method.split(",")

    @property
    def class_names(self) -> list[str]:
        """In the order of the ids."""
        return [self.id2label[index] for index in sorted(self.id2label)]


def render_card(facts: CardFacts) -> str:
    """The whole README.md: metadata for the Hub, text for people."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"md": _escape, "fold": _fold, "last_part": _last_part, "size": _size}
    environment.filters |= {"percent": _percent, "number": _number, "checked_on": _checked_on}
    changed, unchanged = _settings(facts)
    card = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts=facts,
        metadata=card_data(facts).to_yaml(),
        terms=data_terms(facts.dataset),
        title=_title(facts.dataset),
        papers={name: LOSSES[name].paper for name in facts.method_names},
        arguments=_texts(facts.method_kwargs),
        results=_results(facts),
        comparison=_comparison(facts),
        series=class_series(facts),
        per_class=_per_class(facts),
        costs=_costs(facts),
        exports=_exports(facts),
        latency=_latency(facts),
        changed=changed,
        unchanged=unchanged,
    )
    return re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n"


def card_data(facts: CardFacts) -> ModelCardData:
    """The metadata: what the Hub filters and links by."""
    tags = ["semantic-segmentation", "hf_segkd"]
    if facts.method_names:
        tags += ["knowledge-distillation", *facts.method_names]
    if facts.self_contained:
        tags.append("custom_code")
    if any(export["format"].startswith("onnx") for export in _list_exports(facts)):
        tags.append("onnx")
    return ModelCardData(
        # No base_model_relation: the Hub knows finetune, adapter, merge and quantized, and a student is none of them.
        base_model=facts.teacher_id,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        eval_results=_eval_results(facts),
        library_name="transformers",
        license=facts.license,
        metrics=["mean_iou"] if facts.report else None,  # as `evaluate` calls it; it gives all three numbers
        model_name=_last_part(facts.repo_id) if facts.report else None,  # names the scores
        pipeline_tag="image-segmentation",
        tags=tags,
    )


def class_series(facts: CardFacts) -> dict[str, list[float | None]]:
    """What the card calls a network -> its IoU of each class in the order of the ids: 0..1, or None where it has none.

    Of several students trained on the labels alone it is the mean.
    """
    groups = {
        "teacher": [facts.teacher_report] if facts.teacher_report else [],
        "student, labels alone": facts.baseline_runs,
        "this network": [facts.report] if facts.report else [],
    }
    series = {}
    for name, reports in groups.items():
        label = name if len(reports) < 2 else f"{name} (mean of {len(reports)})"
        if facts.report and reports:
            series[label] = [_mean(report["classes"][c]["iou"] for report in reports) for c in facts.class_names]
    return series


def _escape(text: str) -> str:
    """Plain text on one line that Markdown, also in a table, and HTML show as it is."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _eval_results(facts: CardFacts) -> list[EvalResult] | None:
    if facts.report is None:
        return None
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=facts.dataset_id or facts.dataset,
            dataset_name=_title(facts.dataset),
            dataset_split=facts.report["split"],
            metric_type=metric,
            metric_name=f"{name} (%)",
            metric_value=round(100 * facts.report[metric], 2),
        )
        for metric, name in METRICS.items()
    ]


def _results(facts: CardFacts) -> str:
    """Teacher, undistilled and distilled students side by side."""
    if facts.report is None:
        return ""
    runs = facts.runs or [facts.report]
    groups = {
        "teacher": [facts.teacher_report] if facts.teacher_report else [],
        "student, labels alone": facts.baseline_runs,
        "student, distilled" if facts.method_names else "student": runs,
        "**this network**": [facts.report] if len(runs) > 1 else [],
    }
    header = ["", *(f"{name} %" for name in METRICS.values()), "seeds", "steps", "images per step"]
    return table(header, [_result(name, reports) for name, reports in groups.items() if reports])


def _result(name: str, reports: Sequence[dict[str, Any]]) -> list[str]:
    scores = [mean_and_std([100 * report[metric] for report in reports]) for metric in METRICS]
    seeds = ", ".join(str(report["seed"]) for report in reports if "seed" in report)
    budget = [str(reports[0].get(key, "-")) for key in ("steps", "batch_size")]
    return [name, *scores, f"{len(reports)} ({seeds})" if seeds else str(len(reports)), *budget]


def _comparison(facts: CardFacts) -> str:
    """What distillation gained, and what is left of the teacher."""
    if facts.report is None:
        return ""
    runs = facts.runs or [facts.report]
    sentences = [gain_in_words(runs, facts.baseline_runs)] if facts.method_names else []
    if len(runs) == 1:
        sentences.append("One seed: how much the scores differ from seed to seed is not known.")
    if facts.teacher_report and facts.teacher_report["mean_iou"] > 0:
        kept = statistics.mean(run["mean_iou"] for run in runs) / facts.teacher_report["mean_iou"]
        sentences.append(f"The student reaches {100 * kept:.2f} % of the teacher's mIoU.")
    return " ".join(sentences)


def _per_class(facts: CardFacts) -> str:
    series = class_series(facts)
    columns = [map(_escape, facts.class_names), *(map(_percent, values) for values in series.values())]
    return table(["class", *series], [list(row) for row in zip(*columns, strict=True)])


def _costs(facts: CardFacts) -> str:
    rows = [
        [
            cost["network"],
            f"{cost['parameters'] / 1e6:.3f} M",
            "-" if cost["macs"] is None else f"{cost['macs'] / 1e9:.3f} G for {_size(cost['image_size'])} pixels",
            _number(cost["file_mb"]),
        ]
        for cost in facts.costs
    ]
    return table(["", "parameters", "multiply-adds", "MB"], rows) if rows else ""


def _list_exports(facts: CardFacts) -> list[dict[str, Any]]:
    return facts.export["exports"] if facts.export else []


def _exports(facts: CardFacts) -> str:
    rows = [
        [
            _escape(export["file"]),
            f"{_escape(export['format'])}{', opset ' + str(export['opset']) if export['opset'] else ''}",
            _number(export["file_mb"]),
            "class ids" if export["argmax"] else "logits",
            "any" if export["dynamic"] else "fixed",
        ]
        for export in _list_exports(facts)
    ]
    return table(["file", "format", "MB", "gives", "image size"], rows) if rows else ""


def _checked_on(export: dict[str, Any]) -> str:
    """Which images an exported file was checked on, as far as it is told."""
    dataset, split, size = (export.get(key) for key in ("dataset", "split", "image_size"))
    texts = (
        f" of {_escape(_title(dataset))}" if dataset else "",
        f", split {_escape(split)}" if split else "",
        f", resized to {_size(size)} pixels (height x width)" if size else "",
    )
    return "".join(texts)


def _latency(facts: CardFacts) -> str:
    latency = (facts.export or {}).get("latency")
    if not latency:
        return ""
    times = ("median_ms", "p95_ms", "file_mb")
    rows = [[row["network"], row["runtime"], *(_number(row[key]) for key in times)] for row in latency["rows"]]
    return table(["", "runtime", "median ms", "95th percentile ms", "MB"], rows)


def _settings(facts: CardFacts) -> tuple[str, str]:
    """Tables of the training arguments that differ from the defaults, and of the rest."""
    settings, defaults = _texts(facts.settings), _texts(facts.defaults)
    changed = [[name, value, defaults.get(name, "")] for name, value in settings.items() if defaults.get(name) != value]
    rest = [[name, value] for name, value in settings.items() if defaults.get(name) == value]
    return (
        table(["setting", "value", "default"], changed) if changed else "",
        table(["setting", "value"], rest) if rest else "",
    )


def public(values: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that tell of a machine or an account."""
    return {
        name: value for name, value in values.items() if not (PRIVATE_NAMES.search(name) or _tells_of_machine(value))
    }


def shareable(value: Any) -> Any:
    """JSON-like state with everything in its place: of paths on this machine the last part, of secrets nothing."""
    if isinstance(value, dict):
        return {name: None if SECRET_NAMES.search(name) else shareable(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shareable(part) for part in value]
    if isinstance(value, str) and _tells_of_machine(value):
        last = _last_part(value)
        return None if _tells_of_machine(last) else last
    return value


def _tells_of_machine(value: Any) -> bool:
    return PRIVATE_VALUES.search(json.dumps(value, ensure_ascii=False)) is not None


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """Names and values of what is public, as text."""
    return {
        _escape(name): "-" if value is None else _escape(json.dumps(value, ensure_ascii=False))
        for name, value in public(values).items()
    }


def _title(dataset: str) -> str:
    terms = data_terms(dataset)
    return dataset if terms is None else terms.title


def _last_part(name: str) -> str:
    """Last part of a path of any system, or of a Hub id."""
    return PureWindowsPath(name).name


def _fold(text: str, summary: str, folded: bool = True) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>" if folded else text


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _size(image_size: Sequence[int]) -> str:
    return f"{image_size[0]} x {image_size[1]}"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
