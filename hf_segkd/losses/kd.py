"""KD: KL divergence between the class distributions of every pixel (Hinton et al., 2015), also called PD."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from hf_segkd.losses.adapters import align, resize_labels
from hf_segkd.losses.base import AbstractDistillationLoss, require_positive, require_same_num_labels
from hf_segkd.types import Features, NetworkSpec, Paper


def pixel_wise_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, valid: Tensor | None = None
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
    """
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)  # (b, h, w)
    if valid is None:
        return divergence.mean() * temperature**2
    return (divergence * valid).sum() / valid.sum().clamp_min(1) * temperature**2


class KDLoss(AbstractDistillationLoss):
    """Distilling the Knowledge in a Neural Network, applied to each pixel of the logits.

    Logits are compared at the student head's resolution, before they are resized to the image. Weight 1 and
    temperature 1 are those of CIRKD's code. Weights of other repositories in this reduction (mean over
    pixels): IFVD and TorchDistiller 10 / k, SKDS 10 x images per GPU.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term, relative to a cross-entropy averaged over the pixels.
        temperature: T, positive.
        drop_ignored: Leave out the pixels labelled with the ignore index. No public version does (default
            False).

    Raises:
        ValueError: If the class counts differ, `logits` is missing, or a value is out of range.
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
        drop_ignored: bool = False,
    ) -> None:
        super().__init__(student, teacher, student_taps=("logits",), teacher_taps=("logits",), weights={"kd": weight})
        require_same_num_labels(self.name, student, teacher)
        require_positive("temperature", temperature)
        self.temperature = temperature
        self.drop_ignored = drop_ignored
        self.needs_labels = drop_ignored
        self.ignore_index = student.ignore_index

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `pixel_wise_divergence`."""
        logits = student["logits"]
        valid = None
        if self.drop_ignored:
            valid = resize_labels(labels, logits.shape[2:]) != self.ignore_index
        return {"kd": pixel_wise_divergence(logits, align(teacher["logits"], logits), self.temperature, valid)}
