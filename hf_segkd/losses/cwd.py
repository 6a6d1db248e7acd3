"""CWD: KL divergence between the spatial distributions of matching channels (Shu et al., ICCV 2021)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from hf_segkd.losses.adapters import align
from hf_segkd.losses.base import AbstractDistillationLoss, Presets, require_positive, require_same_num_labels
from hf_segkd.types import Features, NetworkSpec, Paper

# On logits, of the authors' two repositories: TorchDistiller's on Cityscapes (README: `exp_cwd.sh channel kl 3 4`),
# mmsegmentation-distiller's on Cityscapes and on ADE20K.
CWD_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"temperature": 4.0, "weight": 3.0},
    "mm_city": {"temperature": 1.0, "weight": 5.0},
    "mm_ade": {"temperature": 1.0, "weight": 10.0},
}


def channel_wise_divergence(
    student_map: Tensor, teacher_map: Tensor, temperature: float = 4.0, subtract_entropy: bool = True
) -> Tensor:
    r"""Mean over images and channels of $T^2 \, KL(p^t \| p^s)$, in nats.

    (Eq. 2 of the FAKD paper, per image and with the teacher's entropy subtracted, as the authors' code has
    it.) With $p_{c,i} = \mathrm{softmax}_i(y_{c,i} / T)$ over the $h w$ positions $i$ of channel $c$ of one
    image:
    $$\frac{T^2}{b\,c} \sum_{b,c,i} p^t_{c,i} \log \frac{p^t_{c,i}}{p^s_{c,i}}$$

    Args:
        student_map: (b, c, h, w).
        teacher_map: (b, c, h, w).
        temperature: T, positive; higher spreads the mass over more positions.
        subtract_entropy: False leaves the teacher's entropy in: the cross-entropy of mmsegmentation-distiller, with
            the same gradient, which is not 0 for equal maps.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
        >>> teacher[..., 0, 0] = 100.0  # all the mass at one of four positions: log 4
        >>> round(channel_wise_divergence(student, teacher, temperature=1.0).item(), 4)
        1.3863
    """
    images, channels = student_map.shape[:2]
    log_student = F.log_softmax(student_map.flatten(2) / temperature, dim=-1)  # (b, c, h*w)
    log_teacher = F.log_softmax(teacher_map.flatten(2) / temperature, dim=-1)
    if subtract_entropy:
        divergence = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    else:
        divergence = -(log_teacher.exp() * log_student).sum()
    return divergence * temperature**2 / (images * channels)


class CWDLoss(AbstractDistillationLoss):
    """Channel-wise Knowledge Distillation for Dense Prediction.

    On logits (default) or on any feature map. Where student and teacher differ in width, a 1x1 convolution
    without bias, trained with the student, takes the student's map to the teacher's channels, as in CIRKD's code.
    Ignored pixels count, as in all public versions.

    Presets set weight and temperature for logits: `paper` is TorchDistiller's setting on Cityscapes, `mm_city` and
    `mm_ade` are mmsegmentation-distiller's on Cityscapes and ADE20K (where the teacher's entropy is left in: the
    gradient is the same).

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term; 3 is TorchDistiller's on logits, with temperature 4. On features CIRKD uses 50 with
            temperature 4, over the student's channels: times teacher's over student's channels here.
        temperature: T, positive; 4 is TorchDistiller's.
        tap: The map to compare: `logits` (both repositories) or a feature map.

    Raises:
        ValueError: If the feature is missing, the class counts differ (on logits), or a value is out of range.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student = NetworkSpec({"decoder": 64, "logits": 19}, num_labels=19)
        >>> teacher = NetworkSpec({"decoder": 256, "logits": 19}, num_labels=19)
        >>> create_loss("cwd", student, teacher, preset="mm_ade").weights
        {'cwd': 10.0}
        >>> create_loss("cwd", student, teacher, tap="decoder", weight=50).projector
        Conv2d(64, 256, kernel_size=(1, 1), stride=(1, 1), bias=False)
    """

    name: ClassVar[str] = "cwd"
    matches: ClassVar[str] = "where each class is, a softmax over pixels"
    presets: ClassVar[Presets] = {"preset": CWD_PRESETS}
    paper: ClassVar[Paper] = Paper(
        title="Channel-wise Knowledge Distillation for Dense Prediction",
        venue="ICCV 2021",
        arxiv="2011.13256",
        bibtex="""@inproceedings{shu2021channel,
  title     = {Channel-wise Knowledge Distillation for Dense Prediction},
  author    = {Shu, Changyong and Liu, Yifan and Gao, Jianfei and Yan, Zheng and Shen, Chunhua},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  pages     = {5311--5320},
  year      = {2021}
}""",
        code="https://github.com/irfanICMLL/TorchDistiller/blob/78bac7c/SemSeg-distill/utils/criterion.py",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 3.0,
        temperature: float = 4.0,
        tap: str = "logits",
    ) -> None:
        super().__init__(student, teacher, student_taps=(tap,), teacher_taps=(tap,), weights={"cwd": weight})
        if tap == "logits":
            require_same_num_labels(self.name, student, teacher)
        require_positive("temperature", temperature)
        self.tap = tap
        self.temperature = temperature
        widths = student.channels[tap], teacher.channels[tap]
        self.projector = nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, 1, bias=False)

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `channel_wise_divergence`; the labels are not read."""
        student_map = self.projector(student[self.tap])
        teacher_map = align(teacher[self.tap], student_map)
        return {"cwd": channel_wise_divergence(student_map, teacher_map, self.temperature)}
