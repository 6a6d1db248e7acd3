"""IFVD: how similar the pixels of a class are to the centre of their class (Wang et al., ECCV 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from hf_segkd.losses.adapters import align, class_labels, lengths, pixel_rows
from hf_segkd.losses.base import AbstractDistillationLoss
from hf_segkd.types import Features, NetworkSpec, Paper


def intra_class_variation(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Cosine between each pixel and the mean of its class in its image; with gradient through both.

    Time and memory are O(b h w c), whatever the number of classes.

    Args:
        features: (b, c, h, w).
        labels: (b, h, w) int64; pixels of a class outside 0 to k-1 are meaningless in the result.
        num_classes: k.

    Returns:
        (b, h, w), -1 to 1; 0 where a pixel or its mean is zero.

    Example:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]]).reshape(1, 2, 1, 3)
        >>> intra_class_variation(features, torch.tensor([[[0, 0, 1]]]), num_classes=2)
        tensor([[[0.7071, 0.7071, 1.0000]]])
    """
    rows = pixel_rows(features)
    sums, group = class_sums(rows, labels, num_classes)
    # The cosine doesn't mind that a sum is longer than the mean.
    cosines = (rows * sums.index_select(0, group)).sum(1) / lengths(rows) / lengths(sums).index_select(0, group)
    return cosines.view(labels.shape)


def class_sums(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sum of the pixels of each class in each image.

    Args:
        rows: Pixels in the order of the labels, (b*h*w, c).
        labels: (b, h, w) int64; those outside 0 to k-1 count as class k.
        num_classes: k.

    Returns:
        The sums, (b*(k+1), c), and which of them each pixel is in, (b*h*w,) int64: image * (k + 1) + class.
    """
    known = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes).flatten(1)
    first = torch.arange(len(labels), device=labels.device) * (num_classes + 1)
    group = (known + first[:, None]).flatten()
    return rows.new_zeros(len(labels) * (num_classes + 1), rows.shape[1]).index_add(0, group, rows), group


class IFVDLoss(AbstractDistillationLoss):
    """Intra-class Feature Variation Distillation for Semantic Segmentation.

    The mean over the pixels of the squared difference between the student's and the teacher's cosine of a pixel with
    the mean of its class in its image. Widths may differ: only cosines are compared. Pixels of no class count in the
    mean with an error of 0, as in the authors' code.

    The published training adds KD and an adversarial term of SKDS; on its own the loss is reported to do harm. Combine
    it: `--method ifvd,kd`.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term. 50 is the paper's; the authors' code has 200, CIRKD's 20 (beside KD of
            weight 1).
        tap: The map to compare, the one before the classifier in the authors' code.

    Raises:
        ValueError: If the feature is missing or the weight is negative.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student, teacher = NetworkSpec({"decoder": 64}, 19), NetworkSpec({"decoder": 256}, 19)
        >>> create_loss("ifvd", student, teacher, weight=200.0).weights
        {'ifvd': 200.0}
    """

    name: ClassVar[str] = "ifvd"
    matches: ClassVar[str] = "similarity of each pixel to the mean of its class"
    needs_labels: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        title="Intra-class Feature Variation Distillation for Semantic Segmentation",
        venue="ECCV 2020",
        arxiv="",
        bibtex="""@inproceedings{wang2020intra,
  title     = {Intra-class Feature Variation Distillation for Semantic Segmentation},
  author    = {Wang, Yukang and Zhou, Wei and Jiang, Tao and Bai, Xiang and Xu, Yongchao},
  booktitle = {European Conference on Computer Vision (ECCV)},
  pages     = {346--362},
  year      = {2020}
}""",
        code="https://github.com/YukangWang/IFVD/blob/950a7a5/utils/criterion.py",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 50.0,
        tap: str = "decoder",
    ) -> None:
        super().__init__(student, teacher, student_taps=(tap,), teacher_taps=(tap,), weights={"ifvd": weight})
        self.tap = tap
        self.num_classes = student.num_labels
        self.ignore_index = student.ignore_index

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `intra_class_variation`."""
        student_map = student[self.tap]
        teacher_map = align(teacher[self.tap], student_map)
        labels = class_labels(labels, student_map.shape[2:], self.ignore_index)
        student_cosines = intra_class_variation(student_map, labels, self.num_classes)
        teacher_cosines = intra_class_variation(teacher_map, labels, self.num_classes)
        valid = (labels >= 0) & (labels < self.num_classes)
        return {"ifvd": ((student_cosines - teacher_cosines).square() * valid).sum() / valid.numel()}
