"""OFD ("Overhaul"): partial L2 distance to the maps before the ReLU, at six places (Heo et al., ICCV 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from hf_segkd.losses.adapters import Connector, align
from hf_segkd.losses.base import (
    AbstractDistillationLoss,
    Presets,
    TrainingRequest,
    require_choice,
    require_positive,
    usual_taps,
)
from hf_segkd.losses.distributed import all_reduce_sum
from hf_segkd.types import Features, NetworkSpec, Paper

# The code's: a stage counts half as much as the next; the decoder's map has 16 times the positions of the encoder's.
DIVISORS = {
    "stage1_pre": 8.0,
    "stage2_pre": 4.0,
    "stage3_pre": 2.0,
    "stage4_pre": 1.0,
    "encoder_pre": 1.0,
    "decoder_pre": 16.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "official": {"divide_by_batch": True, "teacher_batch_statistics": True, "connector_epochs": 1},
}


def partial_l2_distance(student_map: Tensor, teacher_map: Tensor, margin: Tensor) -> Tensor:
    r"""Sum of squared distances to the margin-ReLU of the teacher, where they matter.

    With the margin ReLU $\sigma_m(t) = \max(t, m_c)$ of channel c, the partial L2 distance is
    $$\sum \begin{cases} 0 & s \le \sigma_m(t) \le 0 \\ (s - \sigma_m(t))^2 & \text{otherwise} \end{cases}$$
    over all of (b, c, h, w): below a target that is not positive, the ReLU hides any difference. Only the student's map
    gets a gradient.

    Args:
        student_map: s, before the ReLU, (b, c, h, w).
        teacher_map: t, before the ReLU, (b, c, h, w).
        margin: m, (c,), not positive; -inf leaves t as it is.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[-1.0, 2.0, 0.0]]), torch.tensor([[-3.0, -3.0, 1.0]])
        >>> partial_l2_distance(student.view(1, 1, 1, 3), teacher.view(1, 1, 1, 3), torch.tensor([-0.5])).item()
        7.25
    """
    return _PartialL2Distance.apply(student_map, teacher_map, margin)


class _PartialL2Distance(torch.autograd.Function):
    """`partial_l2_distance`; of all maps only the differences are kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, student_map: Tensor, teacher_map: Tensor, margin: Tensor) -> Tensor:
        target = torch.maximum(teacher_map, margin[:, None, None])
        difference = student_map - target
        hidden = torch.maximum(target, difference) <= 0
        del target
        difference.masked_fill_(hidden, 0.0)
        ctx.save_for_backward(difference)
        return difference.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2.0 * gradient), None, None


def margin_of_norm(weight: Tensor, bias: Tensor) -> Tensor:
    r"""Expected negative response of each channel after a batch norm, (c,).

    $m = E[x | x < 0]$ for $x \sim N(\beta, \gamma^2)$, with the normal density and distribution function:
    $$m = \beta - |\gamma| \frac{\varphi(\beta / |\gamma|)}{\Phi(-\beta / |\gamma|)}$$
    and $-3 |\gamma|$ where $\Phi \le 0.001$, as in the code. A channel with gamma 0 always has the value beta.

    Args:
        weight: gamma, (c,).
        bias: beta, (c,).

    Example:
        >>> import torch
        >>> margin_of_norm(torch.tensor([1.0]), torch.tensor([0.0]))  # - sqrt(2 / pi)
        tensor([-0.7979])
    """
    deviation, bias = weight.double().abs(), bias.double()
    ratio = bias / deviation  # -inf, nan or inf where gamma is 0; the last two fail the comparison below
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    probability = torch.special.ndtr(-ratio)  # of a negative response
    mean = bias - deviation * density / probability
    return torch.where(probability > 0.001, mean, -3 * deviation).float()


class TeacherMargin(nn.Module):
    """Margin of each channel of one of the teacher's maps, known or estimated.

    The estimate is the mean of all negative responses in training so far, on all processes, which is what the
    authors advise where there is no batch norm (issue 7 of their repository). Without one it is 0, the plain ReLU.

    Args:
        channels: c.
        known: The margins, (c,), or None to estimate them.

    Attributes:
        value: The margins, (c,).
        count: Negative responses seen of each channel, (c,) int64; only of an estimate.
    """

    def __init__(self, channels: int, known: Tensor | None) -> None:
        super().__init__()
        self.estimated = known is None
        self.register_buffer("value", torch.zeros(channels) if known is None else known)
        if self.estimated:
            self.register_buffer("count", torch.zeros(channels, dtype=torch.int64))

    def forward(self, teacher_map: Tensor) -> Tensor:
        """The margins, (c,), to which an estimate has added this map, (b, c, h, w), in training mode."""
        if self.estimated and self.training:
            self._update(teacher_map)
        return self.value

    @torch.no_grad()
    def _update(self, teacher_map: Tensor) -> None:
        # An overflow in fp16 would spoil the mean forever.
        negative = teacher_map.clamp(max=0.0).nan_to_num_(nan=0.0, neginf=0.0)
        sums, counts = negative.sum((0, 2, 3)), -negative.sign_().sum((0, 2, 3))
        sums, counts = all_reduce_sum(torch.stack((sums, counts)))
        self.count += counts.long()
        self.value += (sums - counts * self.value) / self.count.clamp_min(1)


class OFDLoss(AbstractDistillationLoss):
    """A Comprehensive Overhaul of Feature Distillation.

    The student's maps before the ReLU go through a connector (1x1 convolution + BatchNorm to the teacher's
    channels); the term is the sum over the features of `partial_l2_distance`, each divided by its divisor. Connectors
    learn with the student, in the papers' code and in the trainer at 10 times the backbone's rate.

    Weight 1e-5 is the code's. It adds 1e-5 / b times the sum over the batch of b images to a mean cross-entropy that
    is divided by b too; beside a mean cross-entropy that is 1e-5 times the sum. So, as there, the term's share grows
    with the batch of a process (theirs: 6 images) and with the crop (513 x 513).

    Presets:

    - `default`: the above, the teacher in evaluation mode.
    - `official`: both terms divided by b; the teacher normalises by each batch's statistics (the authors found it
      better: Table 8, issue 37), its running ones untouched, unless `--teacher_batch_norm eval`; only the connectors
      are trained in epoch 0. Not copied: live dropout in the teacher's decoder, no dropout after the ASPP, the
      connectors' lower rate and own momentum in epoch 0, and MobileNetV2's first three maps, which are the expansions
      that follow ours.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term; 1e-5 is the code's.
        divisors: Feature -> what its sum is divided by; both networks must offer the features. The default is the
            code's; of it the encoder's is left out, with a warning, where a network has none apart from the decoder
            (PSPNet, ISANet).
        margins: `teacher`, those of its batch norm at each feature (paper and code; `margin_of_norm`), estimated where
            there is none (`TeacherMargin`); or `none`, the distance to the teacher's map itself, as in MMRazor.
        connectors: False compares the student's maps as they are, where the widths are the teacher's, as in MMRazor.
        divide_by_batch: Divide the term, and in the trainer the cross-entropy, by the number of images, as the code
            does.
        connector_epochs: In the first so many epochs only the connectors learn (code: 1), afterwards everything.
        teacher_batch_statistics: Whether the teacher normalises by each batch's statistics, as in the code;
            `--teacher_batch_norm` wins over it.

    Raises:
        ValueError: If a feature is missing in a network, a value is out of range, or there are no connectors though the
            widths differ or `connector_epochs` needs them.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student, teacher = NetworkSpec({"decoder_pre": 128}, 19), NetworkSpec({"decoder_pre": 256}, 19)
        >>> loss = create_loss("ofd", student, teacher, divisors={"decoder_pre": 16}, preset="official")
        >>> loss.request
        TrainingRequest(connector_epochs=1, divide_by_batch=True, teacher_batch_statistics=True)
    """

    name: ClassVar[str] = "ofd"
    matches: ClassVar[str] = "feature maps before the ReLU, where the teacher is positive or the student too high"
    couples_images: ClassVar[bool] = True
    presets: ClassVar[Presets] = {"preset": PRESETS}
    paper: ClassVar[Paper] = Paper(
        title="A Comprehensive Overhaul of Feature Distillation",
        venue="ICCV 2019",
        arxiv="1904.01866",
        bibtex="""@inproceedings{heo2019comprehensive,
  title     = {A Comprehensive Overhaul of Feature Distillation},
  author    = {Heo, Byeongho and Kim, Jeesoo and Yun, Sangdoo and Park, Hyojin and Kwak, Nojun and Choi, Jin Young},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  pages     = {1921--1930},
  year      = {2019}
}""",
        code="https://github.com/clovaai/overhaul-distillation/tree/76344a8/Segmentation",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 1e-5,
        divisors: Mapping[str, float] = DIVISORS,
        margins: Literal["teacher", "none"] = "teacher",
        connectors: bool = True,
        divide_by_batch: bool = False,
        connector_epochs: int = 0,
        teacher_batch_statistics: bool = False,
    ) -> None:
        require_choice("margins", margins, ("teacher", "none"))
        if divisors == DIVISORS:
            divisors = {tap: divisors[tap] for tap in usual_taps(self.name, tuple(divisors), student, teacher)}
        if not isinstance(divisors, Mapping) or not divisors:
            raise ValueError(
                f"divisors is {divisors!r}; ofd needs features, each with its divisor: {{'decoder_pre': 16}}."
            )
        for tap, divisor in divisors.items():
            require_positive(f"The divisor of {tap}", divisor)
        taps = tuple(divisors)
        super().__init__(student, teacher, student_taps=taps, teacher_taps=taps, weights={"ofd": weight})
        self.divisors = dict(divisors)
        self.request = TrainingRequest(connector_epochs, divide_by_batch, teacher_batch_statistics)
        if not connectors and connector_epochs:
            raise ValueError("connectors is false, so connector_epochs, in which they learn alone, must be 0.")
        self.connectors, self.margins = nn.ModuleList(), nn.ModuleList()
        for tap in taps:
            width, teacher_width = student.channels[tap], teacher.channels[tap]
            if not connectors and width != teacher_width:
                raise ValueError(
                    f"connectors is false, but {tap} has {width} channels in the student and {teacher_width} in the "
                    "teacher: only a connector makes them comparable."
                )
            known = margin_of_norm(*teacher.norms[tap]) if tap in teacher.norms else None
            if margins == "none":
                known = torch.full((teacher_width,), -torch.inf)
            self.connectors.append(Connector(width, teacher_width) if connectors else nn.Identity())
            self.margins.append(TeacherMargin(teacher_width, known))

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `partial_l2_distance`; the labels are not read."""
        distances = []
        for (tap, divisor), connector, margin in zip(self.divisors.items(), self.connectors, self.margins, strict=True):
            connected = connector(student[tap])
            target = align(teacher[tap], connected)
            distances.append(partial_l2_distance(connected, target, margin(teacher[tap])) / divisor)
        distance = torch.stack(distances).sum()
        return {"ofd": distance / labels.shape[0] if self.request.divide_by_batch else distance}
