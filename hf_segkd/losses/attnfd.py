"""AttnFD: distance between attention-refined maps of student and teacher (Mansourian et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from hf_segkd.losses.adapters import ZERO_NORM, Connector, align, resize_labels
from hf_segkd.losses.attention import CBAM, ParameterFreeAttention
from hf_segkd.losses.base import AbstractDistillationLoss, Presets, TrainingRequest, require_choice, usual_taps
from hf_segkd.types import Features, NetworkSpec, Paper

Norm = Literal["tensor", "sample", "channel", "map"]
TeacherAttention = Literal["parameter_free", "trained", "random"]


PLACES = ("backbone", "encoder", "decoder")
PAPER_PLACES = ("low_level_pre", "encoder_pre", "decoder_pre")

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "official": {
        "divide_by_batch": True,
        "teacher_attention": "random",
        "train_channel_attention": False,
        "connector_epochs": 1,
    },
    "paper": {
        "weight": 1.0,
        "places": PAPER_PLACES,
        "norm": "channel",
        "squared": False,
        "teacher_attention": "trained",
    },
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

    Example:
        >>> import torch
        >>> student, teacher = torch.ones(2, 4, 3, 3), -torch.ones(2, 4, 3, 3)  # opposite, of any length
        >>> round(normalized_distance(5.0 * student, teacher).item(), 4)
        4.0
        >>> round(normalized_distance(student, teacher, norm="channel", squared=False).item(), 4)
        2.0
    """
    if norm == "tensor":
        student_map, teacher_map, dim = student_map.flatten(), teacher_map.flatten(), 0
    elif norm == "sample":
        student_map, teacher_map, dim = student_map.flatten(1), teacher_map.flatten(1), 1
    elif norm == "channel":
        dim = 1
    else:
        student_map, teacher_map, dim = student_map.flatten(2), teacher_map.flatten(2), 2
    student_square, product, teacher_square = _InnerProducts.apply(student_map, teacher_map, dim)
    student_exists, teacher_exists = student_square > ZERO_NORM**2, teacher_square > ZERO_NORM**2
    # Expanding the square keeps the two normalised maps out of memory.
    norms = student_square.clamp_min(ZERO_NORM**2).sqrt() * teacher_square.clamp_min(ZERO_NORM**2).sqrt()
    cosine = product / norms
    cosine = torch.where(student_exists & teacher_exists, cosine, torch.zeros_like(cosine))
    distance = student_exists.to(cosine) + teacher_exists.to(cosine) - 2.0 * cosine
    if not squared:
        distance = distance.clamp_min(1e-12).sqrt()  # the root has no gradient at 0
    return distance.mean()


class _InnerProducts(torch.autograd.Function):
    """Sums of s s, s t and t t over `dim`; a gradient takes two passes and one map."""

    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(student, teacher)
        ctx.dim = dim
        # Not torch.linalg.vector_norm: over all of a large fp32 map it is off by 5e-4 on CPUs; sum() adds pairwise.
        product = torch.empty_like(student)
        pairs = (student, student), (student, teacher), (teacher, teacher)
        return tuple(torch.mul(*pair, out=product).sum(dim) for pair in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        student_slope, product_slope, teacher_slope = (slope.unsqueeze(ctx.dim) for slope in slopes)
        sides = (student, student_slope, teacher), (teacher, teacher_slope, student)
        gradients = (
            (own * (2.0 * slope)).addcmul_(other, product_slope) if needed else None
            for (own, slope, other), needed in zip(sides, ctx.needs_input_grad, strict=False)
        )
        return *gradients, None


class AttnFDLoss(AbstractDistillationLoss):
    r"""Attention-guided Feature Distillation for Semantic Segmentation.

    At each place the student's map goes through a CBAM and a connector (1x1 convolution + BatchNorm to the
    teacher's channels), the teacher's through its attention. The term is the sum of `normalized_distance` over
    the places; the weight is alpha of eq. 6.

    Presets:

    - `default`: the code's places, norm and weight; everything on the student's side learns; the teacher's
      attention has no parameters, so that any teacher gives the same result anywhere. The term is not divided
      by the batch size: the authors' code divides both it and the mean cross-entropy by b, which leaves
      CE : KD = 1 : 2, the ratio that this term has beside a mean cross-entropy.
    - `official`: what the released code computes: the term over b (the trainer divides its cross-entropy likewise),
      random attention on the teacher, student channel attention left as initialised (no optimizer holds it),
      only the connectors trained in epoch 0, and frozen afterwards. Not copied: the teacher in train mode (its
      batch norms are with `--teacher_batch_norm batch_stats`), no ASPP dropout in both networks, and the code's
      learning rates of connectors and attention (`connector_lr_multiplier` is for all).
    - `paper`: eq. 1-6 as printed, misprints mended: the norm along the channels, unsquared, mean over
      positions; pre-ReLU maps (Section 4.2), "backbone" being the low-level one (Section 4.4); trained teacher
      attention; alpha = 1 (Section 4.2: 1 for Pascal VOC, 10 for Cityscapes).

    `teacher_attention="trained"`: the paper trains the teacher's attention and then freezes it, and the
    authors warn that learning both sides from the distillation loss has trivial solutions. Here (our
    derivation) each teacher CBAM learns beside the student from the labels only: its refined map goes
    through a 1x1 classifier of its own into a cross-entropy, the term `attnfd_teacher_attention` of weight 1, and the
    student sees the detached refined map.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term, alpha of eq. 6, relative to a cross-entropy averaged over the pixels. 2 is the
            code's default and README's.
        places: Features to compare; both networks must offer them. The default is the code's, Table 3 compares
            others. Of the default and of `paper` the encoder's is left out, with a warning, where a network has none
            apart from the decoder (PSPNet, ISANet).
        norm: What is scaled to length 1: the whole `tensor` (b, c, h, w) (code), each `sample`, each position's
            `channel` vector (eq. 5), each channel's `map`.
        squared: Whether the distance is squared, as in the code and the paper's text, or not, as eq. 5 prints it.
        divide_by_batch: Divide the term, and in the trainer the cross-entropy, by the number of images, as the code
            does.
        teacher_attention: `parameter_free` (a mode in the code that nothing uses, chosen here), `trained` (paper,
            Section 4.2), or `random` (code: a CBAM that stays as initialised).
        train_channel_attention: Whether the MLPs of the student's CBAMs learn, as in the paper. In the code no
            optimizer holds them.
        connector_epochs: In the first so many epochs only the connectors learn, afterwards everything but them (code:
            1); 0 trains everything throughout.

    Raises:
        ValueError: If a place is missing in a network or a value is out of range.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student = NetworkSpec({"backbone": 512, "decoder": 256}, num_labels=21)
        >>> teacher = NetworkSpec({"backbone": 2048, "decoder": 256}, num_labels=21)
        >>> loss = create_loss("attnfd", student, teacher, preset="official", places=["backbone", "decoder"])
        >>> loss.request.connector_epochs, [tuple(connector[0].weight.shape) for connector in loss.connectors]
        (1, [(2048, 512, 1, 1), (256, 256, 1, 1)])
    """

    name: ClassVar[str] = "attnfd"
    matches: ClassVar[str] = "feature maps refined by attention"
    couples_images: ClassVar[bool] = True
    presets: ClassVar[Presets] = {"preset": PRESETS}
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
        weight: float = 2.0,
        places: tuple[str, ...] = PLACES,
        norm: Norm = "tensor",
        squared: bool = True,
        divide_by_batch: bool = False,
        teacher_attention: TeacherAttention = "parameter_free",
        train_channel_attention: bool = True,
        connector_epochs: int = 0,
    ) -> None:
        places = (places,) if isinstance(places, str) else tuple(places)
        if not places:
            raise ValueError("places is empty; attnfd needs at least one feature to compare.")
        if places in (PLACES, PAPER_PLACES):
            places = usual_taps(self.name, places, student, teacher)
        require_choice("norm", norm, get_args(Norm))
        require_choice("teacher_attention", teacher_attention, get_args(TeacherAttention))
        weights = {"attnfd": weight}
        if teacher_attention == "trained":
            weights["attnfd_teacher_attention"] = 1.0
        super().__init__(student, teacher, student_taps=places, teacher_taps=places, weights=weights)
        self.request = TrainingRequest(connector_epochs, divide_by_batch)
        self.norm: Norm = norm
        self.squared = squared
        self.ignore_index = student.ignore_index

        widths = [(student.channels[place], teacher.channels[place]) for place in places]
        self.student_attention = nn.ModuleList(CBAM(width) for width, _ in widths)
        self.connectors = nn.ModuleList(Connector(*pair) for pair in widths)
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
        terms = {"attnfd": distance / labels.shape[0] if self.request.divide_by_batch else distance}
        if self.teacher_classifiers:
            terms["attnfd_teacher_attention"] = self._classify(refined, labels)
        return terms

    def connector_parameters(self) -> Iterator[nn.Parameter]:
        """The connectors', without the attention's."""
        return self.connectors.parameters()

    def finished_parameters(self) -> Iterator[nn.Parameter]:
        """The connectors': they stay frozen while the student learns."""
        return self.connectors.parameters()

    def _classify(self, refined: list[Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy of the teacher's refined maps at their resolution: pixel mean, sum over places."""
        losses = []
        for target, classifier in zip(refined, self.teacher_classifiers, strict=True):
            resized = resize_labels(labels, target.shape[2:])
            summed = F.cross_entropy(classifier(target), resized, ignore_index=self.ignore_index, reduction="sum")
            losses.append(summed / (resized != self.ignore_index).sum().clamp_min(1))
        return torch.stack(losses).sum()
