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
# Weight of the auxiliary heads' term, beside the terms on the logits (authors' segmentation code).
AUXILIARY_SHARE = 0.4


def pearson_correlation(student: Tensor, teacher: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Correlation coefficients over the dimensions `dim`; 1e-8 is added to the product of the norms, as in the code.

    Where the student is constant the result is 0, as in the code, and so is its gradient: there is no direction to
    follow. (The code divides by only that 1e-8: all-equal logits get gradients of 1e5.)
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

    Example:
        >>> import torch
        >>> teacher = torch.tensor([2.0, 0.0, -2.0]).reshape(1, 3, 1, 1) * torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> inter, intra = correlation_distances(teacher.flip(1), teacher)  # classes in the opposite order
        >>> round(inter.item(), 2), round(intra.item(), 2)
        (1.43, 1.33)
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
        weight: Weight of each of the two terms; 1 in the authors' segmentation code, as beta = gamma there.
        temperature: T, positive. The segmentation code has none, that is 1.
        variant: `paper`, or `mmrazor` for the terms times T^2, as mmrazor and the authors' classification code have
            it. The correlation doesn't change with the scale of the probabilities, so there is nothing to make up for.
        auxiliary_tap: The logits of auxiliary heads, of the same classes in the same order in both networks, on which
            the same loss is the term `dist_auxiliary`, with 0.4 times the weight (authors' segmentation code); a class
            map does not reach them. None has no such term: hf_segkd's networks offer no such feature, of a
            `FeatureNetwork` it can be named.

    Raises:
        ValueError: If the class counts differ, a feature is missing, or a value is out of range.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> spec = NetworkSpec({"logits": 19, "auxiliary": 19}, num_labels=19)
        >>> create_loss("dist", spec, spec, weight=2.0, auxiliary_tap="auxiliary").weights
        {'dist_inter': 2.0, 'dist_intra': 2.0, 'dist_auxiliary': 0.8}
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
        temperature: float = 1.0,
        variant: Literal["paper", "mmrazor"] = "paper",
        auxiliary_tap: str | None = None,
    ) -> None:
        require_weight("weight", weight)
        taps, weights = ("logits",), {"dist_inter": weight, "dist_intra": weight}
        if auxiliary_tap is not None:
            taps += (auxiliary_tap,)
            weights["dist_auxiliary"] = weight * AUXILIARY_SHARE
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
        self.temperature = temperature
        self.factor = temperature**2 if variant == "mmrazor" else 1.0
        self.auxiliary_tap = auxiliary_tap

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `correlation_distances`; the labels are not read."""
        inter, intra = self._distances(student, teacher, "logits")
        terms = {"dist_inter": inter, "dist_intra": intra}
        if self.auxiliary_tap is not None:
            inter, intra = self._distances(student, teacher, self.auxiliary_tap)
            terms["dist_auxiliary"] = inter + intra
        return terms

    def _distances(self, student: Features, teacher: Features, tap: str) -> tuple[Tensor, Tensor]:
        logits = student[tap]
        inter, intra = correlation_distances(logits, align(teacher[tap], logits), self.temperature)
        return self.factor * inter, self.factor * intra
