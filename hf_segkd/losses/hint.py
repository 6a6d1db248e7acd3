"""Hint: regression of the teacher's feature map from the student's, through a 1x1 convolution (Romero et al., 2015)."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from hf_segkd.losses.adapters import align, lengths
from hf_segkd.losses.base import AbstractDistillationLoss, require_choice
from hf_segkd.types import Features, NetworkSpec, Paper

Distance = Literal["squared", "cosine"]


def regression_distance(student_map: Tensor, teacher_map: Tensor, distance: Distance = "squared") -> Tensor:
    r"""Distance between two maps: $\overline{(s - t)^2}$, or the mean over the positions of $1 - \cos(s, t)$.

    Args:
        student_map: s, (b, c, h, w).
        teacher_map: t, (b, c, h, w).
        distance: `squared`, the mean over images, channels and positions, or `cosine`, 0 to 2: the vectors are the c
            channels of a position. A vector of zeros has no direction, and counts as 1.

    Example:
        >>> import torch
        >>> student, teacher = (torch.tensor(x).reshape(1, 2, 1, 1) for x in ([3.0, 0.0], [1.0, 1.0]))
        >>> [round(regression_distance(student, teacher, kind).item(), 4) for kind in ("squared", "cosine")]
        [2.5, 0.2929]
    """
    if distance == "squared":
        return (student_map - teacher_map).square().mean()
    cosine = torch.linalg.vecdot(student_map, teacher_map, dim=1) / lengths(student_map) / lengths(teacher_map)
    return (1.0 - cosine).mean()


class HintLoss(AbstractDistillationLoss):
    """FitNets: Hints for Thin Deep Nets; the feature regression, trained together with the labels.

    A 1x1 convolution with bias takes the student's map to the teacher's channels, as the paper's regressor does, and
    learns with the student. Where the sizes differ, the teacher's map is resized to the student's. Ignored pixels
    count. The paper trains on the hint alone first, and then on the labels with KD; here, as in later comparisons, it
    is a term beside the cross-entropy (`--method hint,kd` adds KD).

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term. The paper's hint stands alone, so that 1 beside a cross-entropy is our choice.
        distance: `squared` (paper, there halved and summed), the mean of the squared differences, which depends on the
            scale of the teacher's features; or `cosine`, 1 - cosine over the channels, which does not.
        taps: The maps to compare, whose distances are added. The paper's are in the middle of both networks; the
            default is the backbone's last, which every network of a backbone and a head has.

    Raises:
        ValueError: If there is no map, one is missing, or a value is out of range.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student, teacher = NetworkSpec({"backbone": 320}, 19), NetworkSpec({"backbone": 2048}, 19)
        >>> create_loss("hint", student, teacher, distance="cosine").connectors[0]
        Conv2d(320, 2048, kernel_size=(1, 1), stride=(1, 1))
    """

    name: ClassVar[str] = "hint"
    matches: ClassVar[str] = "the feature map itself, through a 1x1 convolution"
    paper: ClassVar[Paper] = Paper(
        title="FitNets: Hints for Thin Deep Nets",
        venue="ICLR 2015",
        arxiv="1412.6550",
        bibtex="""@inproceedings{romero2015fitnets,
  title     = {{FitNets: Hints for Thin Deep Nets}},
  author    = {Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and Gatta, Carlo and
               Bengio, Yoshua},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2015}
}""",
        code="https://github.com/adri-romsor/FitNets",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 1.0,
        distance: Distance = "squared",
        taps: tuple[str, ...] = ("backbone",),
    ) -> None:
        require_choice("distance", distance, get_args(Distance))
        taps = (taps,) if isinstance(taps, str) else tuple(taps)
        if not taps:
            raise ValueError("taps is empty; hint needs at least one map to compare.")
        super().__init__(student, teacher, student_taps=taps, teacher_taps=taps, weights={"hint": weight})
        self.distance: Distance = distance
        self.connectors = nn.ModuleList(nn.Conv2d(student.channels[tap], teacher.channels[tap], 1) for tap in taps)

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `regression_distance`; the labels are not read."""
        distances = []
        for tap, connector in zip(self.student_taps, self.connectors, strict=True):
            connected = connector(student[tap])
            distances.append(regression_distance(connected, align(teacher[tap], connected), self.distance))
        return {"hint": torch.stack(distances).sum()}
