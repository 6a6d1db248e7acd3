"""CIRKD: relations between pixels of different images (Yang et al., CVPR 2022); first version, not CIRKDv2."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from hf_segkd.losses.adapters import align, class_labels, lengths, pixel_rows
from hf_segkd.losses.base import (
    AbstractDistillationLoss,
    require_choice,
    require_positive,
    require_same_num_labels,
    require_whole,
)
from hf_segkd.losses.cirkd_memory import CIRKDMemory, key_divergence
from hf_segkd.losses.cirkd_minibatch import LOWEST_TEMPERATURE, minibatch_divergence
from hf_segkd.losses.kd import pixel_wise_divergence
from hf_segkd.types import Features, NetworkSpec, Paper

logger = logging.get_logger(__name__)

# Of pixels and class means (authors' code). Those of 19 to 21 classes fit into a GiB; ADE20K's would take 6.8 GB.
PUBLISHED_LENGTHS = 20000, 2000
LARGEST_MEMORY = 2**30
# The weights of the terms that read an option.
READERS = {
    "tap": ("weight", "pixel_weight", "region_weight"),
    "temperature": ("weight", "pixel_weight", "region_weight"),
    "kd_temperature": ("kd_weight",),
    "contrast_kd_temperature": ("pixel_weight", "region_weight"),
    "pooling": ("weight",),
    "pixel_queue": ("pixel_weight",),
    "region_queue": ("region_weight",),
    "pixel_keys": ("pixel_weight",),
    "region_keys": ("region_weight",),
    "pixels_per_image": ("pixel_weight",),
    "variant": ("pixel_weight", "region_weight"),
    "seed": ("pixel_weight", "region_weight"),
}


class CIRKDLoss(AbstractDistillationLoss):
    """Cross-Image Relational Knowledge Distillation for Semantic Segmentation.

    Four terms: `cirkd_kd`, KD on the logits; `cirkd_minibatch`, the relations of each pixel to all pixels of the
    process's own images, see `minibatch_divergence`; `cirkd_pixel` and `cirkd_region`, the relations of each labelled
    pixel to the teacher's pixels and class means of earlier images of all processes, see `key_divergence` and
    `CIRKDMemory`. For the last two, two 1x1 convolutions with BatchNorm and ReLU between them take the student's map
    to the teacher's channels (each process normalises its own batch; the authors' code synchronises). A term of weight
    0 is left out with its cost; options that only such terms read must be left alone.

    The weights are those of the authors' code, whose reductions are ours; for Pascal VOC it takes 0.01 for pixels and
    regions.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of `cirkd_minibatch`.
        kd_weight: Weight of `cirkd_kd`. With `--method cirkd,kd` the two would add up: give 0 here.
        pixel_weight: Weight of `cirkd_pixel`.
        region_weight: Weight of `cirkd_region`.
        tap: The map whose pixels are related.
        temperature: tau of the relations, 0.1 in the authors' code; at least 0.023.
        kd_temperature: Temperature of `cirkd_kd`.
        contrast_kd_temperature: T of the relations to earlier images.
        pooling: Height and width of the cells averaged before `cirkd_minibatch`, 1 for none (authors' default). Their
            `pooling=True`, advised where memory is short, is 2; their later version takes 4 for maps from 256 x 256.
            Here it saves time alone.
        pixel_queue: Pixels kept of each class. None: 20000 (the authors' code; 2000 for SegFormer), or as many as let
            the queues of all classes fit into 1 GiB, in proportion. Only classes that were seen take memory; each
            checkpoint holds the queues.
        region_queue: Class means kept of each class. None: 2000, or fewer likewise.
        pixel_keys: Pixels of each class that are drawn from the queue at each step. None: 4096 // k + 1.
        region_keys: Class means of each class that are drawn. None: 1024 // k + 1.
        pixels_per_image: Pixels of each class that an image puts into the queue, at most.
        variant: `corrected`, or `published` with a mistake of the authors' code and its start; see `CIRKDMemory`.
        seed: Of the random draws.

    Raises:
        ValueError: If a tap is missing, the class counts differ (with `cirkd_kd`), a value is out of range, or an
            option is set that no term reads.
    """

    name: ClassVar[str] = "cirkd"
    matches: ClassVar[str] = "similarities between pixels, of one batch and to earlier images"
    needs_labels: ClassVar[bool] = True
    couples_images: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        title="Cross-Image Relational Knowledge Distillation for Semantic Segmentation",
        venue="CVPR 2022",
        arxiv="2204.06986",
        bibtex="""@inproceedings{yang2022cross,
  title     = {Cross-Image Relational Knowledge Distillation for Semantic Segmentation},
  author    = {Yang, Chuanguang and Zhou, Helong and An, Zhulin and Jiang, Xue and Xu, Yongjun and Zhang, Qian},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {12319--12328},
  year      = {2022}
}""",
        code="https://github.com/winycg/CIRKD/tree/2d8ad0f/losses",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 1.0,
        kd_weight: float = 1.0,
        pixel_weight: float = 0.1,
        region_weight: float = 0.1,
        tap: str = "decoder",
        temperature: float = 0.1,
        kd_temperature: float = 1.0,
        contrast_kd_temperature: float = 1.0,
        pooling: int = 1,
        pixel_queue: int | None = None,
        region_queue: int | None = None,
        pixel_keys: int | None = None,
        region_keys: int | None = None,
        pixels_per_image: int = 16,
        variant: Literal["corrected", "published"] = "corrected",
        seed: int = 0,
    ) -> None:
        _check(locals())
        weights = {
            "cirkd_kd": kd_weight,
            "cirkd_minibatch": weight,
            "cirkd_pixel": pixel_weight,
            "cirkd_region": region_weight,
        }
        weights = {term: value for term, value in weights.items() if value != 0}
        taps = ("logits", tap) if "cirkd_kd" in weights else (tap,)
        super().__init__(student, teacher, student_taps=taps, teacher_taps=taps, weights=weights)
        if "cirkd_kd" in weights:
            require_same_num_labels(self.name, student, teacher)
        self.tap = tap
        self.temperature = temperature
        self.kd_temperature = kd_temperature
        self.contrast_kd_temperature = contrast_kd_temperature
        self.pooling = pooling
        classes = student.num_labels
        self.keys = (
            4096 // classes + 1 if pixel_keys is None else pixel_keys,
            1024 // classes + 1 if region_keys is None else region_keys,
        )
        self.ignore_index = student.ignore_index
        self.needs_labels = "cirkd_pixel" in weights or "cirkd_region" in weights
        if self.needs_labels:
            channels = teacher.channels[tap]
            self.projector = nn.Sequential(
                nn.Conv2d(student.channels[tap], channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, 1, bias=False),
            )
            used = "cirkd_pixel" in weights, "cirkd_region" in weights
            queues = _queue_lengths((pixel_queue, region_queue), used, classes, channels)
            per_image = pixels_per_image if queues[0] is None else min(pixels_per_image, queues[0])
            self.memory = CIRKDMemory(classes, channels, *queues, per_image, variant, seed)

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class; in training mode the batch enters the queues before it is related to them."""
        student_map = student[self.tap]
        teacher_map = align(teacher[self.tap], student_map)
        terms = {}
        if "cirkd_kd" in self.weights:
            logits = student["logits"]
            teacher_logits = align(teacher["logits"], logits)
            terms["cirkd_kd"] = pixel_wise_divergence(logits, teacher_logits, self.kd_temperature)
        if "cirkd_minibatch" in self.weights:
            terms["cirkd_minibatch"] = minibatch_divergence(student_map, teacher_map, self.temperature, self.pooling)
        if self.needs_labels:
            terms |= self._memory_terms(student_map, teacher_map, labels)
        return terms

    @torch.compiler.disable  # loops and shapes depend on the labels
    def _memory_terms(self, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> dict[str, Tensor]:
        dtype = self.projector[0].weight.dtype  # the maps may be fp64
        student_map, teacher_map = student_map.to(dtype), teacher_map.to(dtype)
        rows = F.normalize(pixel_rows(teacher_map), dim=1)
        labels = class_labels(labels, student_map.shape[2:], self.ignore_index)
        # What overflowed would stay in the queues.
        labels = labels.masked_fill(~rows.isfinite().all(dim=1).view(labels.shape), -1)
        if self.training:
            self.memory.update(rows, labels)
        anchors = (labels >= 0).flatten().nonzero()[:, 0]
        student_anchors = pixel_rows(self.projector(student_map)).index_select(0, anchors)
        student_anchors = student_anchors / lengths(student_anchors, keepdim=True)
        teacher_anchors = rows.index_select(0, anchors)
        terms = {}
        for term, keys in zip(("cirkd_pixel", "cirkd_region"), self.memory.draw(*self.keys), strict=True):
            if keys is not None:
                terms[term] = key_divergence(
                    student_anchors, teacher_anchors, keys, self.temperature, self.contrast_kd_temperature
                )
        return terms


def _check(arguments: dict[str, Any]) -> None:
    """Refuse values out of range, and options set for terms of weight 0."""
    for name in ("temperature", "kd_temperature", "contrast_kd_temperature"):
        require_positive(name, arguments[name])
    if arguments["temperature"] < LOWEST_TEMPERATURE:
        raise ValueError(
            f"temperature is {arguments['temperature']}; it must be at least {LOWEST_TEMPERATURE}, "
            "so that fp32 can hold exp(-2 / temperature)."
        )
    for name in ("pooling", "pixels_per_image"):
        require_whole(name, arguments[name], 1)
    for name in ("pixel_queue", "region_queue", "pixel_keys", "region_keys"):
        if arguments[name] is not None:
            require_whole(name, arguments[name], 1)
    require_choice("variant", arguments["variant"], ("corrected", "published"))
    require_whole("seed", arguments["seed"])
    parameters = inspect.signature(CIRKDLoss).parameters
    for name, readers in READERS.items():
        if arguments[name] != parameters[name].default and all(arguments[reader] == 0 for reader in readers):
            raise ValueError(
                f"{name} is {arguments[name]!r}, but nothing reads it: 0 is given for {' and '.join(readers)}. Leave "
                f"{name} out, or give a weight that is not 0."
            )


def _queue_lengths(
    asked: tuple[int | None, int | None], used: tuple[bool, bool], classes: int, channels: int
) -> list[int | None]:
    """Lengths of the queues of pixels and of class means; None for a queue that isn't used."""
    published = [length * is_used for length, is_used in zip(PUBLISHED_LENGTHS, used, strict=True)]
    share = min(1.0, LARGEST_MEMORY / (sum(published) * classes * channels * 4))
    lengths = []
    for argument, length, full in zip(("pixel_queue", "region_queue"), asked, published, strict=True):
        if length is None and full:
            length = int(full * share)
            if length < full:
                logger.warning(
                    f"cirkd: {argument} is {length} instead of the published {full}, so that the queues of {classes} "
                    f"classes of {channels} channels fit into {LARGEST_MEMORY >> 20} MiB. Give {argument} for another."
                )
        lengths.append(length)
    return lengths
