"""`render_card`: the text of a model card; its functions are in the order of the card."""

from __future__ import annotations

import html
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from hf_segkd.data.licences import data_terms
from hf_segkd.evaluation.reports import METRICS, mean_and_std, table
from hf_segkd.evaluation.run_report import RunReport
from hf_segkd.losses import LOSSES
from hf_segkd.losses.labels import LABEL_LOSSES
from hf_segkd.publishing.card_facts import CardFacts
from hf_segkd.publishing.comparisons import differences_in_words, gain_in_words
from hf_segkd.publishing.javascript import resize_source
from hf_segkd.publishing.privacy import last_part, public, shareable
from hf_segkd.types import Paper

TEMPLATE = Path(__file__).with_name("model_card_template.md")


def render_card(facts: CardFacts) -> str:
    """The whole README.md: metadata for the Hub, text for people."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"md": _escape, "title": _title, "last_part": last_part, "shareable": shareable}
    environment.filters |= {"percent": _percent, "number": _number, "size": _size, "checked_on": _checked_on}
    changed, unchanged = _settings(facts)
    card = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        facts=facts,
        metadata=card_data(facts).to_yaml(),
        papers={name: LOSSES[name].paper if name in LOSSES else facts.own_paper for name in facts.method_names},
        label_papers=_label_papers(facts),
        arguments=_texts(facts.method_kwargs),
        with_labels=facts.report is None or facts.report.train_images != 0,
        results=_results(facts),
        comparison=_comparison(facts),
        series=class_series(facts),
        per_class=_per_class(facts),
        costs=_costs(facts),
        exports=_exports(facts),
        latency=_latency(facts),
        resize_source=resize_source(),
        initial_weights=None if facts.report is None else facts.report.initial_weights,
        changed=changed,
        unchanged=unchanged,
        terms=data_terms(facts.dataset or ""),
    )
    return re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n"


def _label_papers(facts: CardFacts) -> dict[str, Paper]:
    """Name -> publication of the losses on the labels, except the cross-entropy."""
    names = [name.strip() for name in facts.settings.get("label_loss", "ce").split(",")]
    return {name: LABEL_LOSSES[name].paper for name in names if name in LABEL_LOSSES and name != "ce"}


# --- metadata ---


def card_data(facts: CardFacts) -> ModelCardData:
    """The metadata, by which the Hub filters and links."""
    tags = ["semantic-segmentation", "hf_segkd"]
    if facts.method_names:
        tags += ["knowledge-distillation", *facts.method_names]
    if facts.self_contained:
        tags.append("custom_code")
    if any(export["format"].startswith("onnx") for export in facts.exports):
        tags.append("onnx")
    return ModelCardData(
        # No base_model_relation: the Hub knows finetune, adapter, merge and quantized, and a student is none of them.
        base_model=facts.teacher_id,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        eval_results=_eval_results(facts),
        library_name="transformers",
        license=facts.license,
        metrics=["mean_iou"] if facts.report else None,  # as `evaluate` calls it; it gives all three numbers
        model_name=last_part(facts.repo_id) if facts.report else None,  # names the scores
        pipeline_tag="image-segmentation",
        tags=tags,
    )


def _eval_results(facts: CardFacts) -> list[EvalResult] | None:
    if facts.report is None:
        return None
    evaluated_on = facts.report.dataset
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=(evaluated_on == facts.dataset and facts.dataset_id) or evaluated_on,
            dataset_name=_title(evaluated_on),
            dataset_split=facts.report.split,
            metric_type=metric,
            metric_name=f"{name} (%)",
            metric_value=round(facts.report.percent(metric), 2),
        )
        for metric, name in METRICS.items()
    ]


# --- results ---


def _results(facts: CardFacts) -> str:
    """Teacher, undistilled and distilled students side by side."""
    if facts.report is None:
        return ""
    students = {None: "this network", "none": "student"}.get(facts.method, "student, distilled")
    groups = {
        "teacher": [facts.teacher_report] if facts.teacher_report else [],
        "student, labels alone": facts.baseline_runs,
        students: facts.runs,
        "**this network**": [facts.report] if len(facts.runs) > 1 else [],
    }
    header = ["", *(f"{name} %" for name in METRICS.values()), "seeds", "steps", "images per step"]
    return table(header, [_result(name, reports) for name, reports in groups.items() if reports])


def _result(name: str, reports: Sequence[RunReport]) -> list[str]:
    scores = [mean_and_std([report.percent(metric) for report in reports]) for metric in METRICS]
    seeds = ", ".join(str(report.seed) for report in reports if report.seed is not None)
    budget = ["-" if number is None else str(number) for number in (reports[0].steps, reports[0].batch_size)]
    return [name, *scores, f"{len(reports)} ({seeds})" if seeds else str(len(reports)), *budget]


def _comparison(facts: CardFacts) -> str:
    """What distillation gained, and how much of the teacher's score the student keeps."""
    if facts.report is None:
        return ""
    sentences = [gain_in_words(facts.runs, facts.baseline_runs)] if facts.method_names else []
    sentences.append(differences_in_words(facts.report, runs=facts.runs, baseline_runs=facts.baseline_runs))
    if len(facts.runs) == 1:
        sentences.append("One seed: how much the scores differ from seed to seed is not known.")
    if facts.teacher_report and facts.teacher_report.mean_iou > 0:
        kept = statistics.mean(run.mean_iou for run in facts.runs) / facts.teacher_report.mean_iou
        sentences.append(f"The student reaches {_percent(kept)} % of the teacher's mIoU.")
    elif facts.method_names and not facts.teacher_report:
        sentences.append("The teacher's scores under this protocol are not known.")
    return " ".join(filter(None, sentences))


def class_series(facts: CardFacts) -> dict[str, list[float | None]]:
    """Name of a network on the card -> its IoU of each class in the order of the ids: 0..1, or None where undefined.

    For several students trained only on the labels it is the mean.
    """
    if facts.report is None:
        return {}
    groups = {
        "teacher": [facts.teacher_report] if facts.teacher_report else [],
        "student, labels alone": facts.baseline_runs,
        "this network": [facts.report],
    }
    return {
        name if len(reports) == 1 else f"{name} (mean of {len(reports)})": [
            _mean_iou_of(class_name, reports) for class_name in facts.class_names
        ]
        for name, reports in groups.items()
        if reports
    }


def _mean_iou_of(class_name: str, reports: Sequence[RunReport]) -> float | None:
    known = [iou for report in reports if (iou := report.classes[class_name]["iou"]) is not None]
    return statistics.mean(known) if known else None


def _per_class(facts: CardFacts) -> str:
    series = class_series(facts)
    columns = [map(_escape, facts.class_names), *(map(_percent, values) for values in series.values())]
    return table(["class", *series], [list(row) for row in zip(*columns, strict=True)])


# --- size and speed ---


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
    return _table(["", "parameters", "multiply-adds", "MB"], rows)


def _exports(facts: CardFacts) -> str:
    rows = [
        [
            _escape(export["file"]),
            _escape(export["format"]) + (f", opset {export['opset']}" if export["opset"] else ""),
            _escape(export.get("runtime") or ""),
            _escape(export.get("precision") or ""),
            _number(export["file_mb"]),
            "class ids" if export["argmax"] else "logits",
            "any" if export["dynamic"] else "fixed",
        ]
        for export in facts.exports
    ]
    return _table(["file", "format", "runtime", "precision", "MB", "gives", "image size"], rows)


def _checked_on(export: dict[str, Any]) -> str:
    """Which images an exported file was checked on, as far as that is known."""
    dataset, split, size = (export.get(key) for key in ("dataset", "split", "image_size"))
    texts = (
        f" of {_escape(_title(dataset))}" if dataset else "",
        f", split {_escape(split)}" if split else "",
        f", resized to {_size(size)} pixels (height x width)" if size else "",
    )
    return "".join(texts)


def _latency(facts: CardFacts) -> str:
    latency = (facts.export or {}).get("latency") or {"rows": []}
    times = ("median_ms", "p95_ms", "file_mb")
    rows = [
        [row["network"], row["runtime"], *(_number(row[key]) for key in times), _number(row.get("peak_mb"), ".0f")]
        for row in latency["rows"]
    ]
    return _table(["", "runtime", "median ms", "95th percentile ms", "MB", "peak MB"], rows)


# --- training ---


def _settings(facts: CardFacts) -> tuple[str, str]:
    """Tables of the training arguments: those that differ from the defaults, and the rest."""
    settings, defaults = _texts(facts.settings), _texts(facts.defaults)
    changed = [[name, value, defaults.get(name, "")] for name, value in settings.items() if defaults.get(name) != value]
    unchanged = [[name, value] for name, value in settings.items() if defaults.get(name) == value]
    return _table(["setting", "value", "default"], changed), _table(["setting", "value"], unchanged)


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """Names and values of the public settings, as text."""
    return {
        _escape(name): "-" if value is None else _escape(json.dumps(value, ensure_ascii=False))
        for name, value in public(values).items()
    }


# --- words and numbers ---


def _escape(text: str) -> str:
    """Plain text on one line that Markdown, also in a table, and HTML show as it is."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _title(dataset: str) -> str:
    terms = data_terms(dataset)
    return dataset if terms is None else terms.title


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(header, rows) if rows else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _size(image_size: Sequence[int]) -> str:
    return f"{image_size[0]} x {image_size[1]}"
