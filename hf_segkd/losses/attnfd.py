"""AttnFD: distance between attention-refined maps of student and teacher (Mansourian et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_segkd.losses.adapters import ZERO_NORM, Connector, align, resize_labels
from hf_segkd.losses.attention import CBAM, ParameterFreeAttention
from hf_segkd.losses.base import AbstractDistillationLoss, require_choice, require_whole, usual_taps
from hf_segkd.types import Features, NetworkSpec, Paper

Norm = Literal["tensor", "sample", "channel", "map"]
TeacherAttention = Literal["parameter_free", "trained", "random"]


@dataclass(frozen=True)
class Preset:
    """Defaults of `AttnFDLoss`'s arguments of the same names."""

    weight: float = 2.0  # the code's default and README
    places: tuple[str, ...] = ("backbone", "encoder", "decoder")
    norm: Norm = "tensor"
    squared: bool = True
    divide_by_batch: bool = False
    teacher_attention: TeacherAttention = "parameter_free"
    train_channel_attention: bool = True
    connector_epochs: int = 0


PRESETS = {
    "default": Preset(),
    "official": Preset(
        divide_by_batch=True, teacher_attention="random", train_channel_attention=False, connector_epochs=1
    ),
    "paper": Preset(
        weight=1.0,  # Section 4.2: alpha = 1 for Pascal VOC, 10 for Cityscapes
        places=(
            "low_level_pre",
            "encoder_pre",
            "decoder_pre",
        ),  # Sections 4.2 ("Pre-ReLU") and 4.4 ("low-level")
        norm="channel",
        squared=False,
        teacher_attention="trained",
    ),
}


def normalized_distance(
    student_map: Tensor, teacher_map: Tensor, norm: Norm = "tensor", squared: bool = True
) -> Tensor:
    r"""Eq. 5: mean over the vectors of $\| s / \|s\| - t / \|t\| \|^2$, which is $2 - 2 \cos(s, t)$; 0 to 4.

    The code takes the whole batch tensor as one vector (and divides the distance by b afterwards); eq. 5 says
    "along its channels". As the mean is over vectors, all kinds of `norm` have the same range.

    Args:
        student_map: (b, c, h, w).
        teacher_map: (b, c, h, w).
        norm: What one vector is: `tensor` all of (b, c, h, w), `sample` the (c, h, w) of an image, `channel`
            the c channels of a position, `map` the (h, w) of a channel.
        squared: Whether the distance is squared, as in the code and the paper's text, or not, as eq. 5 prints
            it.
    """
    if norm == "tensor":
        student_map, teacher_map, dim = student_map.flatten(), teacher_map.flatten(), 0
    elif norm == "sample":
        student_map, teacher_map, dim = student_map.flatten(1), teacher_map.flatten(1), 1
    elif norm == "channel":
        dim = 1
    else:
        student_map, teacher_map, dim = student_map.flatten(2), teacher_map.flatten(2), 2
    # Not torch.linalg.vector_norm: over all of a large fp32 map it is off by 5e-4 on CPUs; sum() adds pairwise.
    student_square, teacher_square = student_map.square().sum(dim), teacher_map.square().sum(dim)
    student_exists, teacher_exists = student_square > ZERO_NORM**2, teacher_square > ZERO_NORM**2
    # Expanding the square keeps the two normalised maps out of memory.
    norms = student_square.clamp_min(ZERO_NORM**2).sqrt() * teacher_square.clamp_min(ZERO_NORM**2).sqrt()
    cosine = (student_map * teacher_map).sum(dim) / norms
    cosine = torch.where(student_exists & teacher_exists, cosine, torch.zeros_like(cosine))
    distance = student_exists.to(cosine) + teacher_exists.to(cosine) - 2.0 * cosine
    if not squared:
        distance = distance.clamp_min(1e-12).sqrt()  # the root has no gradient at 0
    return distance.mean()


class AttnFDLoss(AbstractDistillationLoss):
    r"""Attention-guided Feature Distillation for Semantic Segmentation.

    At each place the student's map goes through a CBAM and a connector (1x1 convolution + BatchNorm to the
    teacher's channels), the teacher's through its attention. The term is the sum of `normalized_distance` over
    the places; the weight is alpha of eq. 6.

    Presets, which explicit arguments override:

    - `default`: the code's places, norm and weight; everything on the student's side learns; the teacher's
      attention has no parameters, so that any teacher gives the same result anywhere. The term is not divided
      by the batch size: the authors' code divides both it and the mean cross-entropy by b, which leaves
      CE : KD = 1 : 2, the ratio that this term has beside a mean cross-entropy.
    - `official`: what the released code computes: the term over b (the trainer divides its cross-entropy likewise),
      random attention on the teacher, student channel attention left as initialised (no optimizer holds it),
      connectors alone trained in epoch 0 and frozen afterwards. Not copied: the teacher in train mode (its
      batch norms are with `--teacher_batch_norm batch_stats`), no ASPP dropout in both networks, and the code's
      learning rates of connectors and attention (`connector_lr_multiplier` is for all).
    - `paper`: eq. 1-6 as printed, misprints mended: the norm along the channels, unsquared, mean over
      positions; pre-ReLU maps, "backbone" being the low-level one; trained teacher attention; alpha = 1 (VOC;
      10 for Cityscapes).

    `teacher_attention="trained"`: the paper trains the teacher's attention and then freezes it, and the
    authors warn that learning both sides from the distillation loss has trivial solutions. Here (our
    derivation) each teacher CBAM learns beside the student from the labels alone: its refined map goes
    through a 1x1 classifier of its own into a cross-entropy, the term `attnfd_teacher_attention`, and the
    student sees the detached refined map.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        preset: `default`, `official` or `paper`.
        weight: Weight of the term, relative to a cross-entropy averaged over the pixels.
        places: Taps to compare; both networks must offer them. The preset's, but for the encoder's where a network has
            none apart from the decoder (PSPNet, ISANet).
        norm: See `normalized_distance`.
        squared: See `normalized_distance`.
        divide_by_batch: Divide the term, and in the trainer the cross-entropy, by the number of images.
        teacher_attention: `parameter_free`, `trained`, or `random` (a CBAM as initialised, for ever).
        teacher_attention_weight: Weight of the term `attnfd_teacher_attention`; only with `trained`.
        train_channel_attention: Whether the MLPs of the student's CBAMs learn.
        connector_epochs: In the first so many epochs only the connectors learn, afterwards all but them; 0
            trains everything throughout.

    Raises:
        ValueError: If a place is missing in a network or a value is out of range.
    """

    name: ClassVar[str] = "attnfd"
    matches: ClassVar[str] = "feature maps refined by attention"
    couples_images: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        title="Attention-guided Feature Distillation for Semantic Segmentation",
        venue="arXiv 2024",
        arxiv="2403.05451",
        bibtex="""@article{mansourian2024attention,
  title   = {Attention-guided Feature Distillation for Semantic Segmentation},
  author  = {Mansourian, Amir M. and Jalali, Arya and Ahmadi, Rozhan and Kasaei, Shohreh},
  journal = {arXiv preprint arXiv:2403.05451},
  year    = {2024}
}""",
        code="https://github.com/AmirMansurian/AttnFD/tree/f090bbe",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        preset: Literal["default", "official", "paper"] = "default",
        weight: float | None = None,
        places: tuple[str, ...] | None = None,
        norm: Norm | None = None,
        squared: bool | None = None,
        divide_by_batch: bool | None = None,
        teacher_attention: TeacherAttention | None = None,
        teacher_attention_weight: float = 1.0,
        train_channel_attention: bool | None = None,
        connector_epochs: int | None = None,
    ) -> None:
        require_choice("preset", preset, tuple(PRESETS))
        defaults = PRESETS[preset]
        weight = defaults.weight if weight is None else weight
        places = usual_taps(self.name, defaults.places, student, teacher) if places is None else places
        places = (places,) if isinstance(places, str) else tuple(places)
        if not places:
            raise ValueError("places is empty; attnfd needs at least one tap to compare.")
        teacher_attention = defaults.teacher_attention if teacher_attention is None else teacher_attention
        require_choice("teacher_attention", teacher_attention, ("parameter_free", "trained", "random"))
        if teacher_attention != "trained" and teacher_attention_weight != 1.0:
            raise ValueError("teacher_attention_weight is for teacher_attention='trained' alone.")
        weights = {"attnfd": weight}
        if teacher_attention == "trained":
            weights["attnfd_teacher_attention"] = teacher_attention_weight
        super().__init__(student, teacher, student_taps=places, teacher_taps=places, weights=weights)
        self.norm = defaults.norm if norm is None else norm
        require_choice("norm", self.norm, ("tensor", "sample", "channel", "map"))
        self.squared = defaults.squared if squared is None else squared
        self.divide_by_batch = defaults.divide_by_batch if divide_by_batch is None else divide_by_batch
        self.connector_epochs = defaults.connector_epochs if connector_epochs is None else connector_epochs
        require_whole("connector_epochs", self.connector_epochs)
        self.ignore_index = student.ignore_index

        widths = [(student.channels[place], teacher.channels[place]) for place in places]
        self.student_attention = nn.ModuleList(CBAM(width) for width, _ in widths)
        self.connectors = nn.ModuleList(Connector(*pair) for pair in widths)
        if train_channel_attention is None:
            train_channel_attention = defaults.train_channel_attention
        for attention in self.student_attention:
            attention.channel_gate.requires_grad_(train_channel_attention)

        self.teacher_classifiers = nn.ModuleList()
        if teacher_attention == "parameter_free":
            self.teacher_attention = nn.ModuleList(ParameterFreeAttention() for _ in widths)
        else:
            self.teacher_attention = nn.ModuleList(CBAM(width) for _, width in widths)
            self.teacher_attention.requires_grad_(teacher_attention == "trained")
        if teacher_attention == "trained":
            self.needs_labels = True
            self.teacher_classifiers.extend(nn.Conv2d(width, student.num_labels, 1) for _, width in widths)

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class, `normalized_distance` and, for the teacher's attention, the class docstring."""
        refined = [
            attention(align(teacher[place], student[place]))
            for place, attention in zip(self.teacher_taps, self.teacher_attention, strict=True)
        ]
        distance = torch.stack(
            [
                normalized_distance(connector(attention(student[place])), target.detach(), self.norm, self.squared)
                for place, attention, connector, target in zip(
                    self.student_taps, self.student_attention, self.connectors, refined, strict=True
                )
            ]
        ).sum()
        terms = {"attnfd": distance / labels.shape[0] if self.divide_by_batch else distance}
        if self.teacher_classifiers:
            terms["attnfd_teacher_attention"] = self._classify(refined, labels)
        return terms

    def connector_parameters(self) -> Iterator[nn.Parameter]:
        """The connectors', without the attention's."""
        return self.connectors.parameters()

    def _classify(self, refined: list[Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy of the teacher's refined maps at their resolution: pixel mean, sum over places."""
        losses = []
        for target, classifier in zip(refined, self.teacher_classifiers, strict=True):
            resized = resize_labels(labels, target.shape[2:])
            summed = F.cross_entropy(classifier(target), resized, ignore_index=self.ignore_index, reduction="sum")
            losses.append(summed / (resized != self.ignore_index).sum().clamp_min(1))
        return torch.stack(losses).sum()
