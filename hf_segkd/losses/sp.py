"""SP: distance between the image-to-image similarities of student and teacher (Tung and Mori, ICCV 2019)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers.utils import logging

from hf_segkd.losses.base import AbstractDistillationLoss
from hf_segkd.losses.distributed import gather_images, world_size
from hf_segkd.losses.gram import gram_matrix, unit_rows
from hf_segkd.types import Features, NetworkSpec, Paper

logger = logging.get_logger(__name__)


def similarity_matrix(maps: Tensor) -> Tensor:
    """Inner products of all pairs of images, each row of products scaled to length 1: (b, c, h, w) -> (b, b).

    Example:
        >>> import torch
        >>> similarity_matrix(torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(2, 1, 1, 2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    channels = maps.flatten(2).transpose(0, 1)  # (c, b, h*w)
    # One product over a whole map adds up in sequence on CPUs, and its gradient is off by 1e-3 in fp32.
    return unit_rows(gram_matrix(channels).sum(0))


def similarity_distance(student_maps: Tensor, teacher_maps: Tensor) -> Tensor:
    r"""Eq. 4: $\frac{1}{b^2} \| G^s - G^t \|_F^2$, G being the `similarity_matrix`; at most 4 / b.

    Args:
        student_maps: (b, c, h, w).
        teacher_maps: (b, c', h', w').

    Example:
        >>> import torch
        >>> student, teacher = torch.eye(2).reshape(2, 1, 1, 2), torch.ones(2, 3, 4, 4)  # unlike and alike images
        >>> round(similarity_distance(student, teacher).item(), 4)
        0.2929
    """
    return (similarity_matrix(student_maps) - similarity_matrix(teacher_maps)).square().mean()


class SPLoss(AbstractDistillationLoss):
    """Similarity-Preserving Knowledge Distillation.

    Compares how alike the images of a batch are, so it needs two of them: a batch of one image gives exactly 0 and
    teaches nothing. With several processes the batch is that of all of them; each must then bring the same number of
    images of the same size, as the Trainer's loaders do, and holds the maps of all. Sizes and widths of student and
    teacher may differ entirely. There is nothing to train.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the term. 3000 is RepDistiller's, for batches of 64 small images; no weight for
            segmentation is published. The value falls as 1 / b, so 3000 b / 64 is that weight's equal for b images.
        gather: Compare the images of all processes; False compares those of each process, as all public code does.
        tap: The map to compare; RepDistiller's is its networks' last one.

    Raises:
        ValueError: If the feature is missing or the weight is negative.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student, teacher = NetworkSpec({"decoder": 64}, 19), NetworkSpec({"decoder": 256}, 19)
        >>> create_loss("sp", student, teacher, weight=3000 * 16 / 64).weights  # RepDistiller's for 16 images
        {'sp': 750.0}
    """

    name: ClassVar[str] = "sp"
    matches: ClassVar[str] = "which images of the batch resemble each other"
    couples_images: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        title="Similarity-Preserving Knowledge Distillation",
        venue="ICCV 2019",
        arxiv="1907.09682",
        bibtex="""@inproceedings{tung2019similarity,
  title     = {{Similarity-Preserving Knowledge Distillation}},
  author    = {Tung, Frederick and Mori, Greg},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  pages     = {1365--1374},
  year      = {2019}
}""",
        code="https://github.com/HobbitLong/RepDistiller/blob/b84f547/distiller_zoo/SP.py",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 3000.0,
        gather: bool = True,
        tap: str = "decoder",
    ) -> None:
        super().__init__(student, teacher, student_taps=(tap,), teacher_taps=(tap,), weights={"sp": weight})
        self.gather = gather
        self.tap = tap

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `similarity_distance`; the labels are not read."""
        student_maps, teacher_maps = student[self.tap], teacher[self.tap]
        processes = world_size() if self.gather else 1
        if processes > 1:
            student_maps, teacher_maps = gather_images(student_maps), gather_images(teacher_maps)
        if len(student_maps) == 1:
            logger.warning_once("sp compares the images of a batch; with one image it is always 0. Use two or more.")
        distance = similarity_distance(student_maps, teacher_maps)
        # The value is that of all images everywhere, but each process has only the gradient through its own. The whole
        # gradient is the sum of these parts and DDP takes their mean: scale the gradient, not the value.
        return {"sp": distance.detach() + processes * (distance - distance.detach())}
