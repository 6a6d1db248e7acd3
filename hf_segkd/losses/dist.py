"""DIST: correlation between the class probabilities of student and teacher (Huang et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from hf_segkd.losses.adapters import align
from hf_segkd.losses.base import (
    AbstractDistillationLoss,
    require_choice,
    require_positive,
    require_same_num_labels,
    require_weight,
)
from hf_segkd.types import Features, NetworkSpec, Paper

# A vector whose deviations from its mean are less than this fraction of it is constant up to fp32's rounding.
CONSTANT = 1e-6


def pearson_correlation(student: Tensor, teacher: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Correlation coefficients over the dimensions `dim`; 1e-8 is added to the product of the norms, as in the code.

    Where the student is constant the result is 0, as in the code, and so is its gradient: there is no direction to
    follow. (The code divides by that 1e-8 alone: all-equal logits get gradients of 1e5.)
    """
    mean = student.mean(dim, keepdim=True)
    student, teacher = student - mean, teacher - teacher.mean(dim, keepdim=True)
    square = student.square().sum(dim)
    size = student.numel() // square.numel()
    varies = square > CONSTANT**2 * size * mean.square().squeeze(dim)
    norms = torch.where(varies, square, 1.0).sqrt() * teacher.square().sum(dim).sqrt()
    return torch.where(varies, (student * teacher).sum(dim) / (norms + 1e-8), 0.0)


def correlation_distances(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    r"""Inter- and intra-class distance, each 1 minus a mean of correlations of $p = \mathrm{softmax}(z / T)$; 0 to 2.

    Inter: over the classes of each pixel, mean over the pixels. Intra: over all pixels of the batch for each class,
    mean over the classes.

    Args:
        student_logits: (b, k, h, w).
        teacher_logits: (b, k, h, w).
        temperature: T, positive.
    """
    student, teacher = (student_logits / temperature).softmax(1), (teacher_logits / temperature).softmax(1)
    inter = 1.0 - pearson_correlation(student, teacher, (1,)).mean()
    intra = 1.0 - pearson_correlation(student, teacher, (0, 2, 3)).mean()
    return inter, intra


class DISTLoss(AbstractDistillationLoss):
    """Knowledge Distillation from A Stronger Teacher; two terms, `dist_inter` and `dist_intra`, or three.

    On the logits at the head's resolution. The pixels of the intra-class correlation are those of one process, and
    ignored pixels count, as in all public versions.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Factor of all terms; 1 in the authors' segmentation code.
        beta: Weight of the inter-class term; 1 in the authors' segmentation code.
        gamma: Weight of the intra-class term; 1 in the authors' segmentation code.
        temperature: T, positive. The segmentation code has none, that is 1.
        variant: `paper`, or `mmrazor` for the terms times T^2, as mmrazor and the authors' classification code have
            it. The correlation doesn't change with the scale of the probabilities, so there is nothing to make up for.
        auxiliary_tap: The logits of auxiliary heads, of the same classes in the same order in both networks, on which
            the same loss is the term `dist_auxiliary`; a class map does not reach them. None (default) has no such
            term: hf_segkd's networks offer no such tap, of a `FeatureNetwork` it can be named.
        auxiliary_weight: Factor of that term; 0.4 in the authors' segmentation code.

    Raises:
        ValueError: If the class counts differ, a tap is missing, or a value is out of range.
    """

    name: ClassVar[str] = "dist"
    matches: ClassVar[str] = "correlation of class probabilities, per pixel and per class"
    couples_images: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        title="Knowledge Distillation from A Stronger Teacher",
        venue="NeurIPS 2022",
        arxiv="2205.10536",
        bibtex="""@inproceedings{huang2022knowledge,
  title     = {{Knowledge Distillation from A Stronger Teacher}},
  author    = {Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  volume    = {35},
  pages     = {33716--33727},
  year      = {2022}
}""",
        code="https://github.com/hunto/DIST_KD/blob/2418f18/segmentation/losses/dist_kd.py",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        variant: Literal["paper", "mmrazor"] = "paper",
        auxiliary_tap: str | None = None,
        auxiliary_weight: float = 0.4,
    ) -> None:
        factors = {"weight": weight, "beta": beta, "gamma": gamma, "auxiliary_weight": auxiliary_weight}
        for argument, value in factors.items():
            require_weight(argument, value)
        taps, weights = ("logits",), {"dist_inter": weight * beta, "dist_intra": weight * gamma}
        if auxiliary_tap is not None:
            taps += (auxiliary_tap,)
            weights["dist_auxiliary"] = weight * auxiliary_weight
        super().__init__(student, teacher, student_taps=taps, teacher_taps=taps, weights=weights)
        require_same_num_labels(self.name, student, teacher)
        require_positive("temperature", temperature)
        require_choice("variant", variant, ("paper", "mmrazor"))
        if auxiliary_tap is not None:
            channels = student.channels[auxiliary_tap], teacher.channels[auxiliary_tap]
            if channels != (student.num_labels, student.num_labels):
                raise ValueError(
                    f"auxiliary_tap must be logits of the {student.num_labels} classes, but {auxiliary_tap} has "
                    f"{channels[0]} channels in the student and {channels[1]} in the teacher."
                )
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.factor = temperature**2 if variant == "mmrazor" else 1.0
        self.auxiliary_tap = auxiliary_tap

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `correlation_distances`; the labels are not read."""
        inter, intra = self._distances(student, teacher, "logits")
        terms = {"dist_inter": inter, "dist_intra": intra}
        if self.auxiliary_tap is not None:
            inter, intra = self._distances(student, teacher, self.auxiliary_tap)
            terms["dist_auxiliary"] = self.beta * inter + self.gamma * intra
        return terms

    def _distances(self, student: Features, teacher: Features, tap: str) -> tuple[Tensor, Tensor]:
        logits = student[tap]
        inter, intra = correlation_distances(logits, align(teacher[tap], logits), self.temperature)
        return self.factor * inter, self.factor * intra
