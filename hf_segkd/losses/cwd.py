"""CWD: KL divergence between the spatial distributions of matching channels (Shu et al., ICCV 2021)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from hf_segkd.losses.adapters import align
from hf_segkd.losses.base import (
    AbstractDistillationLoss,
    require_choice,
    require_positive,
    require_same_num_labels,
)
from hf_segkd.types import Features, NetworkSpec, Paper

# Temperature and weight on logits, of the authors' two repositories.
CWD_PRESETS = {
    "paper": (4.0, 3.0),  # TorchDistiller, Cityscapes (README: `exp_cwd.sh channel kl 3 4`)
    "mm_city": (1.0, 5.0),  # mmsegmentation-distiller, Cityscapes
    "mm_ade": (1.0, 10.0),  # mmsegmentation-distiller, ADE20K
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

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        preset: Defaults of `temperature` and `weight` on logits: `paper` 4 and 3 (TorchDistiller,
            Cityscapes), `mm_city` 1 and 5, `mm_ade` 1 and 10 (mmsegmentation-distiller, Cityscapes and
            ADE20K).
        weight: Weight of the term. On features CIRKD uses 50 with temperature 4 and `divide_by="student"`,
            TorchDistiller's logs 35 to 40 with temperatures of 1 to 10 and `projector_activation`.
        temperature: T, positive.
        subtract_entropy: See `channel_wise_divergence`; mmsegmentation-distiller does not.
        divide_by: The channels that the mean is over where a projector changes their number: those that are
            compared, the `teacher`'s (default), or the `student`'s, as CIRKD and mmsegmentation-distiller have it: the
            value is then larger by the ratio of the widths.
        projector_bias: Whether the projector has a bias, as in mmsegmentation-distiller.
        projector_activation: Whether batch norm and ReLU follow the projector, as in TorchDistiller (the leaky ReLU of
            its InPlaceABN is undone by the ReLU behind it).
        tap: The map to compare.

    Raises:
        ValueError: If the tap is missing, the class counts differ (on logits), or a value is out of range.
    """

    name: ClassVar[str] = "cwd"
    matches: ClassVar[str] = "where each class is, a softmax over pixels"
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
        preset: Literal["paper", "mm_city", "mm_ade"] = "paper",
        weight: float | None = None,
        temperature: float | None = None,
        subtract_entropy: bool = True,
        divide_by: Literal["teacher", "student"] = "teacher",
        projector_bias: bool = False,
        projector_activation: bool = False,
        tap: str = "logits",
    ) -> None:
        require_choice("preset", preset, tuple(CWD_PRESETS))
        require_choice("divide_by", divide_by, ("teacher", "student"))
        preset_temperature, preset_weight = CWD_PRESETS[preset]
        weight = preset_weight if weight is None else weight
        super().__init__(student, teacher, student_taps=(tap,), teacher_taps=(tap,), weights={"cwd": weight})
        if tap == "logits":
            require_same_num_labels(self.name, student, teacher)
        self.tap = tap
        self.temperature = preset_temperature if temperature is None else temperature
        require_positive("temperature", self.temperature)
        student_channels, teacher_channels = student.channels[tap], teacher.channels[tap]
        self.subtract_entropy = subtract_entropy
        self.scale = teacher_channels / student_channels if divide_by == "student" else 1.0
        self.projector: nn.Module = nn.Identity()
        if student_channels != teacher_channels:
            self.projector = nn.Conv2d(student_channels, teacher_channels, 1, bias=projector_bias)
            if projector_activation:
                self.projector = nn.Sequential(self.projector, nn.BatchNorm2d(teacher_channels), nn.ReLU())
        elif projector_bias or projector_activation:
            option = "projector_bias" if projector_bias else "projector_activation"
            raise ValueError(f"{option}: {tap} is equally wide in both networks, so there is no projector.")

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `channel_wise_divergence`; the labels are not read."""
        student_map = self.projector(student[self.tap])
        teacher_map = align(teacher[self.tap], student_map)
        divergence = channel_wise_divergence(student_map, teacher_map, self.temperature, self.subtract_entropy)
        return {"cwd": self.scale * divergence}
