"""LAD: distance between the directions of the features of student and teacher (Liu et al., WACV 2024)."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from hf_segkd.losses.adapters import align
from hf_segkd.losses.attnfd import Norm, normalized_distance
from hf_segkd.losses.base import AbstractDistillationLoss, require_choice, require_same_num_labels
from hf_segkd.losses.dist import pearson_correlation
from hf_segkd.types import Features, NetworkSpec, Paper

Vector = Literal["pixel", "channel", "centred_channel", "sample", "patch"]

# What `normalized_distance` calls the vectors.
NORMS: dict[str, Norm] = {"pixel": "channel", "channel": "map", "sample": "sample", "patch": "channel"}


def angular_distance(student_map: Tensor, teacher_map: Tensor, vector: Vector = "pixel", patch_size: int = 4) -> Tensor:
    r"""Mean over the vectors of $\| s / \|s\| - t / \|t\| \|^2 = 2 (1 - \cos(s, t))$; 0 to 4.

    Args:
        student_map: (b, c, h, w).
        teacher_map: (b, c, h, w).
        vector: What one vector is: `pixel` the c channels of a position, `channel` the (h, w) of a channel,
            `centred_channel` these less their mean (then the cosine is their correlation, and the mean squared
            distance of standardised channels the same), `sample` the (c, h, w) of an image, `patch` the (c, p, p) of a
            patch of positions.
        patch_size: p; patches don't overlap, and those at the right and bottom border may be smaller.

    Example:
        >>> import torch
        >>> student = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
        >>> [angular_distance(student, torch.tensor(t).reshape(1, 2, 1, 1)).item() for t in ([7.0, 0.0], [0.0, 7.0])]
        [0.0, 2.0]
    """
    if vector == "centred_channel":
        return 2.0 * (1.0 - pearson_correlation(student_map, teacher_map, (2, 3)).mean())
    if vector == "patch":
        student_map = _patches_as_pixels(student_map, patch_size)
        teacher_map = _patches_as_pixels(teacher_map, patch_size)
    return normalized_distance(student_map, teacher_map, NORMS[vector])


def _patches_as_pixels(x: Tensor, size: int) -> Tensor:
    """(b, c, h, w) -> (b, c p p, h / p, w / p), h and w filled up with zeros, which change no angle."""
    return F.pixel_unshuffle(F.pad(x, (0, -x.shape[3] % size, 0, -x.shape[2] % size)), size)


class LADLoss(AbstractDistillationLoss):
    r"""Rethinking Knowledge Distillation with Raw Features for Semantic Segmentation: the angular part.

    A derivation, as there is no public code. The abstract says that the squared error between raw features mixes
    magnitude and angle, that the angle is what helps, and that the method distils only the angle. Of
    $\| s - t \|^2 = (\|s\| - \|t\|)^2 + 2 \|s\| \|t\| (1 - \cos)$ that leaves $2 (1 - \cos)$. What the vectors are,
    the map, the projector and the weight are choices made here; `centred_channel` is the authors' earlier NFD, the
    squared distance of standardised channels.

    Where student and teacher differ in width, a 1x1 convolution without bias, trained with the student, takes the
    student's map to the teacher's channels. Ignored pixels count.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term; chosen here.
        vector: What has a direction: `pixel` (chosen here) the channels of a position, `channel` the positions of a
            channel, `centred_channel` these less their mean (NFD, by the same authors), `sample` a whole map, `patch`
            4x4 positions.
        tap: The map to compare; chosen here.

    Raises:
        ValueError: If the feature is missing, the class counts differ (on logits), or a value is out of range.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student, teacher = NetworkSpec({"decoder": 64}, 19), NetworkSpec({"decoder": 256}, 19)
        >>> create_loss("lad", student, teacher, vector="centred_channel").projector
        Conv2d(64, 256, kernel_size=(1, 1), stride=(1, 1), bias=False)
    """

    name: ClassVar[str] = "lad"
    matches: ClassVar[str] = "directions of feature vectors (a derivation: no public code)"
    paper: ClassVar[Paper] = Paper(
        title="Rethinking Knowledge Distillation with Raw Features for Semantic Segmentation",
        venue="WACV 2024",
        arxiv="",
        bibtex="""@inproceedings{liu2024rethinking,
  title     = {{Rethinking Knowledge Distillation with Raw Features for Semantic Segmentation}},
  author    = {Liu, Tao and Chen, Chenshu and Yang, Xi and Tan, Wenming},
  booktitle = {Proceedings of the IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  pages     = {1155--1164},
  year      = {2024}
}""",
        code=None,
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 1.0,
        vector: Vector = "pixel",
        tap: str = "decoder",
    ) -> None:
        super().__init__(student, teacher, student_taps=(tap,), teacher_taps=(tap,), weights={"lad": weight})
        require_choice("vector", vector, get_args(Vector))
        self.vector: Vector = vector
        self.tap = tap
        if tap == "logits":
            require_same_num_labels(self.name, student, teacher)
        widths = student.channels[tap], teacher.channels[tap]
        self.projector = nn.Identity() if widths[0] == widths[1] else nn.Conv2d(*widths, 1, bias=False)

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `angular_distance`; the labels are not read."""
        student_map = self.projector(student[self.tap])
        teacher_map = align(teacher[self.tap], student_map)
        return {"lad": angular_distance(student_map, teacher_map, self.vector)}
