"""`write_publication`: a student's folder for the Hub: weights, configuration, processor, card, scores, pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageOps
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_segkd import models
from hf_segkd.data import evenly_spread, label_info
from hf_segkd.data.image_processors import fixed_size, num_bands
from hf_segkd.data.licences import data_terms
from hf_segkd.evaluation.pictures import colour, comparison, per_class_chart
from hf_segkd.evaluation.reports import SCORES_FILE, write_json
from hf_segkd.networks.inference import predict
from hf_segkd.networks.profiling import count_macs
from hf_segkd.publishing.card_facts import CardFacts
from hf_segkd.publishing.javascript import javascript_size
from hf_segkd.publishing.model_card import class_series, render_card
from hf_segkd.publishing.privacy import public

logger = logging.get_logger(__name__)

PICTURE_FILE = "comparison.png"
CHART_FILE = "per_class_iou.png"
# Written by the export command into the network's folder; they are published too.
EXPORTS = ("onnx", "torch_export", "litert", "executorch", "openvino", "ncnn", "coreml")
# Published too with --self_contained.
CODE = tuple(sorted(file.name for file in Path(models.__file__).parent.glob("*.py") if file.name != "__init__.py"))
# Not every publication has them; those of an earlier one must be deleted.
NOT_ALWAYS_THERE = (SCORES_FILE, CHART_FILE, PICTURE_FILE, *(f"{name}/" for name in EXPORTS), *CODE)
CELL_WIDTH = 256
NUM_PICTURES = 4

# Entries of a report that describe the machine it was made on, or that the card and config.json say better.
PRIVATE = ("data", "model", "teacher", "initial_weights", "settings", "network")


def write_publication(
    folder: Path,
    *,
    student: PreTrainedModel,
    processor: Any,
    facts: CardFacts,
    networks: Mapping[str, tuple[PreTrainedModel, Any]] | None = None,
    samples: datasets.Dataset | None = None,
) -> None:
    """Write everything about a student into a folder.

    Args:
        folder: Folder to write to; created if it is missing.
        student: The network.
        processor: Its image processor.
        facts: What the card says; with `self_contained` the network's code is added, for users without the package.
        networks: Column title -> network and image processor, for the pictures.
        samples: Images to draw; without them (or networks) there are no pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours = is_ours(student)
    save_network(student, folder, facts.self_contained and ours)
    bands = num_bands(processor)
    # Networks of transformers itself bring no code; one that was loaded with its repository's code saves that too.
    needs_package = ours or bands is not None
    with_code = facts.self_contained if needs_package else student._auto_class is not None
    facts = replace(facts, needs_package=needs_package, self_contained=with_code, num_bands=bands)
    facts = replace(facts, javascript_size=javascript_size(processor, facts.exports))
    save_processor(processor, folder, with_code)
    if facts.report is not None:
        shared = {key: value for key, value in facts.report.to_json().items() if key not in PRIVATE}
        if "method_kwargs" in shared:
            shared["method_kwargs"] = public(shared["method_kwargs"])
        write_json(shared, folder / SCORES_FILE)
        per_class_chart(facts.class_names, class_series(facts)).save(folder / CHART_FILE, optimize=True)
        facts = replace(facts, chart=CHART_FILE)
    if samples is not None and (networks := that_take(networks or {}, samples)):
        compare(samples, networks).save(folder / PICTURE_FILE, optimize=True)
        facts = replace(facts, pictures=[PICTURE_FILE])
    (folder / "README.md").write_text(render_card(facts), encoding="utf-8")


def weights_sha256(folder: Path) -> str | None:
    """SHA-256 of the weights in a folder, in one file or several; None where there are none."""
    files = sorted(folder.glob("model*.safetensors"))
    known_by = hashlib.sha256()
    for file in files:
        known_by.update(file.read_bytes())
    return known_by.hexdigest() if files else None


def save_network(model: PreTrainedModel, folder: Path, self_contained: bool) -> None:
    """`save_pretrained`; self-contained, with the files of `hf_segkd.models` that the network is made of."""
    if not self_contained:
        model.save_pretrained(folder)
        return
    classes = {type(model): "AutoModelForSemanticSegmentation", type(model.config): "AutoConfig"}
    try:
        for kind, auto_class in classes.items():
            kind.register_for_auto_class(auto_class)
        model.save_pretrained(folder)
    finally:  # otherwise every later save would add code
        for kind in classes:
            kind._auto_class = None


def save_processor(processor: Any, folder: Path, self_contained: bool) -> None:
    """`save_pretrained`; self-contained, with the code of a processor of this package."""
    kind = type(processor)
    if not (self_contained and kind.__module__.startswith("hf_segkd.")):
        processor.save_pretrained(folder)
        return
    try:
        kind.register_for_auto_class("AutoImageProcessor")
        processor.save_pretrained(folder)
    finally:  # as for networks; the processor itself also records it
        kind._auto_class = None
        vars(processor).pop("auto_map", None)


def is_ours(model: PreTrainedModel) -> bool:
    """Whether a network's code is in this package, and not in transformers itself."""
    return type(model).__module__.startswith("hf_segkd.")


def that_take(
    networks: Mapping[str, tuple[PreTrainedModel, Any]], samples: datasets.Dataset
) -> dict[str, tuple[PreTrainedModel, Any]]:
    """Those of the networks that take images of the samples' sizes; of others, such as EoMT, the log tells."""
    first = {sample["image"].size: sample["image"] for sample in samples}
    taken = {}
    for title, (model, processor) in networks.items():
        try:
            for image in first.values():
                predict(model, processor, image)
        except ValueError as error:
            logger.warning(f"The pictures are without the {title}, which does not take these images whole: {error}")
            continue
        taken[title] = (model, processor)
    return taken


def compare(
    samples: datasets.Dataset,
    networks: Mapping[str, tuple[PreTrainedModel, Any]],
    tile: int | Sequence[int] | None = None,
    overlap: int | None = None,
) -> Image.Image:
    """A table of pictures: image, truth and each network's prediction, in the data set's colours, with a legend.

    Args:
        samples: The images and their labels.
        networks: Title of a column -> a network and its image processor.
        tile: As of `predict`, also `overlap`; by default networks see whole images.
        overlap: See `tile`.
    """
    labels = label_info(samples)
    rows, size, seen = [], None, set()
    for sample in samples:
        image = sample["image"]
        size = size or (CELL_WIDTH, round(CELL_WIDTH * image.height / image.width))
        masks = [np.array(sample["annotation"])]
        masks += [predict(*network, image, tile, overlap).cpu().numpy() for network in networks.values()]
        seen.update(*(np.unique(mask).tolist() for mask in masks))
        pictures = [Image.fromarray(colour(mask, labels.palette)) for mask in masks]
        photo = ImageOps.pad(image.convert("RGB"), size, Image.Resampling.BICUBIC, color="white")
        rows.append([photo, *(ImageOps.pad(p, size, Image.Resampling.NEAREST, color="white") for p in pictures)])
    classes = np.array(sorted(seen))  # those that nothing shows would hide the others in a long legend
    names = [labels.id2label.get(index, "not labelled") for index in classes]
    return comparison(rows, ["image", "truth", *networks], names, colour(classes, labels.palette).tolist())


def samples_to_show(dataset: datasets.Dataset, count: int | None = None) -> tuple[datasets.Dataset | None, str | None]:
    """Evenly spread images for a card, or none and the reason.

    Args:
        dataset: Data set to take them from.
        count: Number of images; None takes four where the data set's terms clearly allow it, else none.
    """
    name = label_info(dataset).name
    terms = data_terms(name)
    if count is None and not (terms is not None and terms.images_may_be_shown):
        title = f"data set {name!r}" if terms is None else terms.title
        return None, f"The terms of {title} are not known to allow its images here, so none are shown."
    if count == 0:
        return None, None
    return evenly_spread(dataset, NUM_PICTURES if count is None else count), None


def describe(model: nn.Module) -> str:
    """The architecture in a few words, e.g. "DeepLabV3+ (mobilenet-v2 x 0.35, output stride 16)"."""
    name = type(model).__name__.removesuffix("ForSemanticSegmentation").replace("DeepLabV3Plus", "DeepLabV3+")
    config = getattr(model, "config", None)  # a teacher of another library may have none
    backbone = getattr(config, "backbone_config", None)
    if backbone is None:
        return name
    details = getattr(config, "backbone", None) or backbone.model_type.removeprefix("segkd-")
    if getattr(backbone, "depth_multiplier", 1) != 1:
        details += f" x {backbone.depth_multiplier:g}"
    stride = getattr(config, "output_stride", None)
    return f"{name} ({details}, output stride {stride})" if stride else f"{name} ({details})"


def cost(network: str, model: PreTrainedModel, image_size: tuple[int, int] | None) -> dict[str, Any]:
    """Size of a network as `CardFacts.costs` takes it; multiply-adds for one image of (height, width) pixels.

    They are None where the size is not known, or the network does not take it.
    """
    macs = None
    if image_size is not None:
        try:
            macs = count_macs(model, image_size)
        except ValueError as error:
            logger.warning(f"The multiply-adds of the {network} are not counted: {error}")
    return {
        "network": network,
        "parameters": model.num_parameters(),
        "macs": macs,
        "image_size": None if image_size is None else list(image_size),
        "file_mb": model.get_memory_footprint(return_buffers=True) / 1e6,
    }


def image_size(processor: Any, images: datasets.Dataset | None) -> tuple[int, int] | None:
    """Height and width a network sees: those the processor resizes to, else those that it gives the first image."""
    size = fixed_size(processor)
    if size is not None or images is None:
        return size
    image = images[0]["image"]
    image = image.convert("RGB") if num_bands(processor) is None else image
    return tuple(processor(images=image, return_tensors="pt")["pixel_values"].shape[-2:])
