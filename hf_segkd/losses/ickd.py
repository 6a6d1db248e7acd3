"""ICKD: distance between the channel-to-channel correlations of student and teacher (Liu et al., ICCV 2021)."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_segkd.losses.adapters import Connector
from hf_segkd.losses.base import AbstractDistillationLoss, Presets, require_choice, require_same_num_labels
from hf_segkd.losses.gram import gram_matrix, unit_rows
from hf_segkd.types import Features, NetworkSpec, Paper

Variant = Literal["cifar", "imagenet"]


def split_patches(x: Tensor, patches: tuple[int, int]) -> Tensor:
    """Cut maps into n x m patches, as even as possible: (b, c, h, w) -> (n m b, c, p).

    The smaller ones are filled up with zeros, which change no inner product of channels.

    Raises:
        ValueError: If the map has fewer rows or columns than are asked for.
    """
    (rows, columns), (height, width) = patches, x.shape[2:]
    if rows > height or columns > width:
        raise ValueError(f"A map of {height} x {width} has no {rows} x {columns} patches; ask for fewer.")
    if tuple(patches) == (1, 1):
        return x.flatten(2)
    patch_height, patch_width = -(-height // rows), -(-width // columns)
    bands = [F.pad(band, (0, 0, 0, patch_height - band.shape[2])) for band in x.tensor_split(rows, dim=2)]
    blocks = torch.cat(bands).tensor_split(columns, dim=3)
    return torch.cat([F.pad(block, (0, patch_width - block.shape[3])) for block in blocks]).flatten(2)


def channel_correlation(x: Tensor) -> Tensor:
    """Inner products of all pairs of channels, each row of products scaled to length 1: (b, c, p) -> (b, c, c).

    Example:
        >>> import torch
        >>> channel_correlation(torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]]))[0]
        tensor([[0.3162, 0.9487, 0.0000],
                [0.3162, 0.9487, 0.0000],
                [0.0000, 0.0000, 1.0000]])
    """
    return unit_rows(gram_matrix(x))


def inter_channel_distance(student_map: Tensor, teacher_map: Tensor, patches: tuple[int, int] = (1, 1)) -> Tensor:
    r"""Mean over patches, images and channels of $\| G^s_c - G^t_c \|^2$, $G_c$ a row of `channel_correlation`; 0 to 4.

    With one patch this is the authors' CIFAR code, $\frac{1}{b\,c} \| G^s - G^t \|_F^2$. (The paper's eq. 4, and its
    equation for patches, divide by c once more and leave the rows of G as they are.)

    Args:
        student_map: (b, c, h, w).
        teacher_map: (b, c, h', w'); positions are summed over, so their number may differ.
        patches: Their number n along the height and m along the width ("ICKD-S"). On Pascal VOC the authors report
            74.14, 74.97, 74.74 and 75.01 % mIoU for 1, 4, 16 and 32 squared patches.

    Example:
        >>> import torch
        >>> student, teacher = torch.eye(2).reshape(1, 2, 1, 2), torch.ones(1, 2, 4, 4)  # unlike and alike channels
        >>> round(inter_channel_distance(student, teacher).item(), 4)  # 2 - sqrt(2)
        0.5858
    """
    student_patches, teacher_patches = split_patches(student_map, patches), split_patches(teacher_map, patches)
    difference = channel_correlation(student_patches) - channel_correlation(teacher_patches)
    return difference.square().sum(2).mean()


class ICKDLoss(AbstractDistillationLoss):
    """Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation.

    The student's map goes through a 1x1 convolution without bias and a BatchNorm to the teacher's channels (the
    authors' code makes one for the teacher as well, and never uses it). On `logits` classes stand for channels and
    nothing is embedded, as in AICSD. Ignored pixels count, as in all public versions.

    Which map and weight the authors took for segmentation is not public.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        variant: After which of the authors' two programs: `cifar`, or `imagenet`, which embeds by a 3x3 convolution and
            divides by the number of images once more, so that the term falls as the batch grows.
        weight: Weight of the term. 2.5 is that of the authors' CIFAR program; `variant="imagenet"` sets 500, that of
            the other. Both are made for classification.
        embed: Whether the student's map is embedded; `logits` never are (AICSD).
        tap: The map to compare; chosen here, AICSD compares `logits`.

    Raises:
        ValueError: If the feature is missing, a value is out of range, or widths differ without embedding.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> student, teacher = NetworkSpec({"decoder": 64}, 19), NetworkSpec({"decoder": 256}, 19)
        >>> loss = create_loss("ickd", student, teacher, variant="imagenet")
        >>> loss.weights, tuple(loss.embed[0].weight.shape)
        ({'ickd': 500.0}, (256, 64, 3, 3))
    """

    name: ClassVar[str] = "ickd"
    matches: ClassVar[str] = "which channels resemble each other"
    presets: ClassVar[Presets] = {"variant": {"cifar": {}, "imagenet": {"weight": 500.0}}}
    paper: ClassVar[Paper] = Paper(
        title="Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation",
        venue="ICCV 2021",
        arxiv="2202.03680",
        bibtex="""@inproceedings{liu2021exploring,
  title     = {{Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation}},
  author    = {Liu, Li and Huang, Qingle and Lin, Sihao and Xie, Hongwei and Wang, Bing and Chang, Xiaojun and
               Liang, Xiaodan},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  pages     = {8271--8280},
  year      = {2021}
}""",
        code="https://github.com/ADLab-AutoDrive/ICKD/tree/403b8d3",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        variant: Variant = "cifar",
        weight: float = 2.5,
        embed: bool = True,
        tap: str = "decoder",
    ) -> None:
        require_choice("variant", variant, get_args(Variant))
        super().__init__(student, teacher, student_taps=(tap,), teacher_taps=(tap,), weights={"ickd": weight})
        self.variant = variant
        self.tap = tap
        if tap == "logits":
            require_same_num_labels(self.name, student, teacher)
        student_channels, teacher_channels = student.channels[tap], teacher.channels[tap]
        self.embed: nn.Module = nn.Identity()
        if embed and tap != "logits":
            self.embed = Connector(student_channels, teacher_channels, kernel_size=3 if variant == "imagenet" else 1)
        elif student_channels != teacher_channels:
            raise ValueError(
                f"ickd compares channel by channel without embed, but the student's {tap} has {student_channels} "
                f"channels and the teacher's {teacher_channels}. Set embed to True."
            )

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and `inter_channel_distance`; the labels are not read."""
        distance = inter_channel_distance(self.embed(student[self.tap]), teacher[self.tap])
        return {"ickd": distance / len(labels) if self.variant == "imagenet" else distance}
