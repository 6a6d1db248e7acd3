"""AT: distance between the attention maps of student and teacher (Zagoruyko and Komodakis, ICLR 2017)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_segkd.losses.base import AbstractDistillationLoss, Presets, require_choice
from hf_segkd.types import Features, NetworkSpec, Paper

Reduction = Literal["sum", "mean"]

# CIRKD's weight (train_at.sh) belongs to the mean over positions; its maps have 64 x 128 of them.
MEAN_WEIGHT = 1e4
SUM_WEIGHT = MEAN_WEIGHT / (64 * 128)


def attention_map(feature: Tensor) -> Tensor:
    """Mean of the squares over the channels: (b, c, h, w) -> (b, h*w).

    Example:
        >>> import torch
        >>> attention_map(torch.tensor([[1.0, 2.0], [3.0, 0.0]]).reshape(1, 2, 1, 2))
        tensor([[5., 2.]])
    """
    # Not square().mean(): that takes twice the time and memory.
    return torch.linalg.vecdot(feature, feature, dim=1).flatten(1) / feature.shape[1]


def attention_distance(student_map: Tensor, teacher_map: Tensor, reduction: Reduction = "sum") -> Tensor:
    r"""Mean over the images of $\| q^s / \|q^s\| - q^t / \|q^t\| \|^2$, q being the `attention_map` as a vector.

    The sum over the h w positions lies between 0 and 2 whatever the crop; the mean over them, as public code takes
    it, is h w times smaller. Eq. 2 of the paper prints the norm itself; all code, the authors' too, squares it.

    Args:
        student_map: (b, c, h, w).
        teacher_map: (b, c', h', w'). Where the sizes differ, the larger map is averaged down to the smaller, as in
            RepDistiller's code (for squares; here height and width each take the smaller of the two).
        reduction: `sum` or `mean` over the positions.

    Example:
        >>> import torch
        >>> left, right = torch.eye(2).reshape(2, 1, 1, 1, 2)  # all the activation at one position, at the other
        >>> attention_distance(left, right).item(), attention_distance(left, right, "mean").item()
        (2.0, 1.0)
    """
    size = tuple(map(min, student_map.shape[2:], teacher_map.shape[2:]))
    student_map, teacher_map = (
        x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (student_map, teacher_map)
    )
    # F.normalize divides by at least 1e-12, so a map of zeros stays one and has a gradient of 0.
    difference = F.normalize(attention_map(student_map)) - F.normalize(attention_map(teacher_map))
    squares = difference.square().sum(1)
    return squares.mean() if reduction == "sum" else squares.mean() / difference.shape[1]


class ATLoss(AbstractDistillationLoss):
    """Paying More Attention to Attention, the activation-based form with the second power.

    One or several maps, whose distances are added. Widths may differ: the channels are averaged away. There is nothing
    to train, and ignored pixels count, as in all public versions.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term. `reduction="mean"` sets CIRKD's 10000 (`train_at.sh`); the default, for `sum`, is
            what that is at its maps of 64 x 128. CIRKD adds KD of weight 1 (`--method at,kd`).
        reduction: `sum` over the positions, which doesn't depend on the size of the crop, or their `mean`, as in the
            code of Zagoruyko, RepDistiller and CIRKD. A weight for `mean` divided by h w is the weight for `sum`.
        taps: The maps to compare. CIRKD: the one that enters the classifier; the paper: the end of several stages.

    Raises:
        ValueError: If there is no map, one is missing, or a value is out of range.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student, teacher = NetworkSpec({"decoder": 64}, 19), NetworkSpec({"decoder": 256}, 19)
        >>> create_loss("at", student, teacher, reduction="mean").weights
        {'at': 10000.0}
    """

    name: ClassVar[str] = "at"
    matches: ClassVar[str] = "where the activations are strong"
    presets: ClassVar[Presets] = {"reduction": {"sum": {}, "mean": {"weight": MEAN_WEIGHT}}}
    paper: ClassVar[Paper] = Paper(
        title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
        "Attention Transfer",
        venue="ICLR 2017",
        arxiv="1612.03928",
        bibtex="""@inproceedings{zagoruyko2017paying,
  title     = {{Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via Attention Transfer}},
  author    = {Zagoruyko, Sergey and Komodakis, Nikos},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2017}
}""",  # noqa: E501
        code="https://github.com/szagoruyko/attention-transfer/tree/893df54",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = SUM_WEIGHT,
        reduction: Reduction = "sum",
        taps: tuple[str, ...] = ("decoder",),
    ) -> None:
        require_choice("reduction", reduction, ("sum", "mean"))
        taps = (taps,) if isinstance(taps, str) else tuple(taps)
        if not taps:
            raise ValueError("taps is empty; at needs at least one map to compare.")
        super().__init__(student, teacher, student_taps=taps, teacher_taps=taps, weights={"at": weight})
        self.reduction: Reduction = reduction

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `attention_distance`; the labels are not read."""
        distances = [attention_distance(student[tap], teacher[tap], self.reduction) for tap in self.student_taps]
        return {"at": torch.stack(distances).sum()}
