"""KD: KL divergence between the class distributions of every pixel (Hinton et al., 2015), also called PD."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from hf_segkd.losses.adapters import align, resize_labels
from hf_segkd.losses.base import (
    AbstractDistillationLoss,
    require_choice,
    require_positive,
    require_same_num_labels,
)
from hf_segkd.types import Features, NetworkSpec, Paper

Reduction = Literal["pixel_mean", "element_mean", "image_mean"]


def pixel_wise_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    valid: Tensor | None = None,
    reduction: Reduction = "pixel_mean",
) -> Tensor:
    r"""Mean over the pixels of $T^2 \, KL(p^t \| p^s)$, in nats.

    With $p_{i,c} = \mathrm{softmax}_c(z_{i,c} / T)$ over the $k$ classes of pixel $i$, $M$ pixels in the
    batch:
    $$\frac{T^2}{M} \sum_{i,c} p^t_{i,c} \log \frac{p^t_{i,c}}{p^s_{i,c}}$$
    (Section 2 of the paper explains $T^2$; the FAKD paper prints the cross-entropy form as its eq. 1.)

    Args:
        student_logits: (b, k, h, w).
        teacher_logits: (b, k, h, w).
        temperature: T, positive.
        valid: (b, h, w) bool, the pixels to count; None counts all. Without any, the result is 0 with a
            graph.
        reduction: What the sum is divided by: the M pixels, the M k elements, or the b images.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
        >>> teacher[:, 0] = 100.0  # sure of the first of two classes, the student undecided: log 2
        >>> round(pixel_wise_divergence(student, teacher).item(), 4)
        0.6931
    """
    images, classes = student_logits.shape[:2]
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)  # (b, h, w)
    pixels: Tensor | int = divergence.numel()
    if valid is not None:
        divergence, pixels = divergence * valid, valid.sum().clamp_min(1)
    divisors = {"pixel_mean": pixels, "element_mean": pixels * classes, "image_mean": images}
    return divergence.sum() / divisors[reduction] * temperature**2


class KDLoss(AbstractDistillationLoss):
    """Distilling the Knowledge in a Neural Network, applied to each pixel of the logits.

    Logits are compared at the student head's resolution, before they are resized to the image. Weight 1 and
    temperature 1 are those of CIRKD's code. Weights of other repositories in the default reduction, beside a
    cross-entropy averaged over the pixels: IFVD and TorchDistiller 10 / k, SKDS 10 b, AICSD 10 b / k, with k classes
    and b images per GPU. (AICSD compares logits resized to the image and divides its cross-entropy by b.)

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term, relative to a cross-entropy averaged over the pixels; 1 is CIRKD's.
        temperature: T, positive; 1 is CIRKD's.
        reduction: `pixel_mean` (CIRKD), `element_mean` over pixels and classes (PyTorch's default: IFVD,
            TorchDistiller, AICSD) or `image_mean`, the sum over the pixels (RepDistiller's code, which was made for one
            vector per image). SKDS sums over the images and divides by h w: `create_loss("skds", preset="official")`.
        drop_ignored: Leave out the pixels labelled with the ignore index; no public version does.

    Raises:
        ValueError: If the class counts differ, `logits` is missing, or a value is out of range.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> spec = NetworkSpec({"logits": 19}, num_labels=19)
        >>> loss = create_loss("kd", spec, spec, temperature=4.0, drop_ignored=True)
        >>> loss.weights, loss.needs_labels
        ({'kd': 1.0}, True)
    """

    name: ClassVar[str] = "kd"
    matches: ClassVar[str] = "class probabilities of each pixel"
    paper: ClassVar[Paper] = Paper(
        title="Distilling the Knowledge in a Neural Network",
        venue="NIPS 2014 Deep Learning Workshop",
        arxiv="1503.02531",
        bibtex="""@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015}
}""",
        code="https://github.com/winycg/CIRKD/blob/dab64db/losses/kd.py",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 1.0,
        temperature: float = 1.0,
        reduction: Reduction = "pixel_mean",
        drop_ignored: bool = False,
    ) -> None:
        super().__init__(student, teacher, student_taps=("logits",), teacher_taps=("logits",), weights={"kd": weight})
        require_same_num_labels(self.name, student, teacher)
        require_positive("temperature", temperature)
        require_choice("reduction", reduction, get_args(Reduction))
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.drop_ignored = drop_ignored
        self.needs_labels = drop_ignored
        self.ignore_index = student.ignore_index

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `pixel_wise_divergence`."""
        logits = student["logits"]
        valid = None
        if self.drop_ignored:
            valid = resize_labels(labels, logits.shape[2:]) != self.ignore_index
        target = align(teacher["logits"], logits)
        return {"kd": pixel_wise_divergence(logits, target, self.temperature, valid, self.reduction)}
