"""CIRKD: relations between pixels of different images (Yang et al., CVPR 2022); first version, not CIRKDv2."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from hf_segkd.losses.adapters import align, class_labels, lengths, pixel_rows
from hf_segkd.losses.base import AbstractDistillationLoss, require_positive, require_same_num_labels
from hf_segkd.losses.cirkd_memory import CIRKDMemory, key_divergence
from hf_segkd.losses.cirkd_minibatch import LOWEST_TEMPERATURE, minibatch_divergence
from hf_segkd.losses.kd import pixel_wise_divergence
from hf_segkd.types import Features, NetworkSpec, Paper

logger = logging.get_logger(__name__)

# Lengths of the queues of pixels and of class means (authors' code); those of 19 to 21 classes fit into a GiB, ADE20K's
# would take 6.8 GB.
PUBLISHED_LENGTHS = 20000, 2000
LARGEST_MEMORY = 2**30
# Keys drawn from all queues of pixels and of class means together (authors' code).
PUBLISHED_KEYS = 4096, 1024


class CIRKDLoss(AbstractDistillationLoss):
    """Cross-Image Relational Knowledge Distillation for Semantic Segmentation.

    Four terms: `cirkd_kd`, KD on the logits; `cirkd_minibatch`, the relations of each pixel to all pixels of the
    process's own images, see `minibatch_divergence`; `cirkd_pixel` and `cirkd_region`, the relations of each labelled
    pixel to the teacher's pixels and class means of earlier images of all processes, see `key_divergence` and
    `CIRKDMemory`. For the last two, two 1x1 convolutions with BatchNorm and ReLU between them take the student's map
    to the teacher's channels (each process normalises its own batch; the authors' code synchronises). A term of weight
    0 is left out with its cost.

    The weights and the temperature are those of the authors' code, whose reductions are ours; so are the queues: 20000
    pixels and 2000 class means of each class, or as many as let the queues of all classes fit into 1 GiB, in
    proportion. Only classes that were seen take memory; each checkpoint holds the queues.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of `cirkd_minibatch`; 1 in the authors' code.
        kd_weight: Weight of `cirkd_kd`, at temperature 1; 1 in the authors' code. With `--method cirkd,kd` the two
            would add up: give 0 here.
        pixel_weight: Weight of `cirkd_pixel`; 0.1 in the authors' code, 0.01 for Pascal VOC.
        region_weight: Weight of `cirkd_region`; 0.1 in the authors' code, 0.01 for Pascal VOC.
        tap: The map whose pixels are related, the one before the classifier in the authors' code.
        temperature: tau of the relations, 0.1 in the authors' code; at least 0.023.

    Raises:
        ValueError: If a feature is missing, the class counts differ (with `cirkd_kd`), or a value is out of range.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student = NetworkSpec({"decoder": 64, "logits": 19}, num_labels=19)
        >>> teacher = NetworkSpec({"decoder": 256, "logits": 19}, num_labels=19)
        >>> loss = create_loss("cirkd", student, teacher, region_weight=0)
        >>> loss.weights
        {'cirkd_kd': 1.0, 'cirkd_minibatch': 1.0, 'cirkd_pixel': 0.1}
        >>> loss.memory.pixels.vectors.shape  # no class was seen yet
        torch.Size([0, 20000, 256])
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
    ) -> None:
        require_positive("temperature", temperature)
        if temperature < LOWEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {temperature}; it must be at least {LOWEST_TEMPERATURE}, so that fp32 can hold "
                "exp(-2 / temperature)."
            )
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
        self.keys = tuple(keys // student.num_labels + 1 for keys in PUBLISHED_KEYS)
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
            self.memory = CIRKDMemory(student.num_labels, channels, *_queue_lengths(used, student.num_labels, channels))

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class; in training mode the batch enters the queues before it is related to them."""
        student_map = student[self.tap]
        teacher_map = align(teacher[self.tap], student_map)
        terms = {}
        if "cirkd_kd" in self.weights:
            logits = student["logits"]
            teacher_logits = align(teacher["logits"], logits)
            terms["cirkd_kd"] = pixel_wise_divergence(logits, teacher_logits)
        if "cirkd_minibatch" in self.weights:
            terms["cirkd_minibatch"] = minibatch_divergence(student_map, teacher_map, self.temperature)
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
        labels = labels.masked_fill(~rows.sum(dim=1).isfinite().view(labels.shape), -1)
        if self.training:
            self.memory.update(rows, labels)
        anchors = (labels >= 0).flatten().nonzero()[:, 0]
        student_anchors = pixel_rows(self.projector(student_map)).index_select(0, anchors)
        student_anchors = student_anchors / lengths(student_anchors, keepdim=True)
        teacher_anchors = rows.index_select(0, anchors)
        terms = {}
        for term, keys in zip(("cirkd_pixel", "cirkd_region"), self.memory.draw(*self.keys), strict=True):
            if keys is not None:
                terms[term] = key_divergence(student_anchors, teacher_anchors, keys, self.temperature)
        return terms


def _queue_lengths(used: tuple[bool, bool], classes: int, channels: int) -> list[int | None]:
    """Lengths of the queues of pixels and of class means; None for a queue that isn't used."""
    published = [length * is_used for length, is_used in zip(PUBLISHED_LENGTHS, used, strict=True)]
    share = min(1.0, LARGEST_MEMORY / (sum(published) * classes * channels * 4))
    lengths = [int(length * share) for length in published]
    for length, full, kind in zip(lengths, published, ("pixels", "class means"), strict=True):
        if length < full:
            logger.warning(
                f"cirkd keeps {length} {kind} of each class instead of the published {full}, so that the queues of "
                f"{classes} classes of {channels} channels fit into {LARGEST_MEMORY >> 20} MiB."
            )
    return [length or None for length in lengths]
