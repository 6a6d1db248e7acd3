"""SKDS: pixel-wise, pair-wise and adversarial distillation together (Liu et al., CVPR 2019)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from hf_segkd.losses.adapters import ZERO_NORM, align
from hf_segkd.losses.adversary import Adversary, Objective
from hf_segkd.losses.base import AbstractDistillationLoss, Presets, require_choice, require_same_num_labels
from hf_segkd.losses.kd import pixel_wise_divergence
from hf_segkd.types import Features, NetworkSpec, Paper

Variant = Literal["official", "cirkd"]

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "official": {"reduction": "sum"},
    "cirkd": {
        "weight": 1.0,
        "pair_weight": 10.0,
        "adversarial_weight": 0.001,
        "variant": "cirkd",
        "objective": "hinge",
    },
}


def summed_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""$-\frac{1}{h w} \sum p^t \log p^s$, in nats, summed over the images, as in the authors' code.

    Its gradient is b times that of `pixel_wise_divergence`, its value larger by the teacher's entropy.

    Args:
        student_logits: (b, k, h, w).
        teacher_logits: (b, k, h, w).

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 3, 4, 4)  # two images, three equally likely classes: 2 log 3
        >>> round(summed_cross_entropy(logits, logits).item(), 4)
        2.1972
    """
    height, width = student_logits.shape[2:]
    return -(teacher_logits.softmax(1) * student_logits.log_softmax(1)).sum() / (height * width)


def pair_wise_distance(
    student_map: Tensor,
    teacher_map: Tensor,
    variant: Variant = "official",
    pool_scale: float = 0.5,
) -> Tensor:
    r"""Mean of $(a^t_{ij} - a^s_{ij})^2$ over the images and all pairs of nodes, a node with itself included.

    A node is a region of the map, max-pooled; $a_{ij}$ is the cosine of nodes i and j.

    Args:
        student_map: (b, c, h, w).
        teacher_map: (b, c', h, w).
        variant: `official` pools regions of `pool_scale` times the map, so that 4 nodes are left, or up to 9 where the
            sides are odd, and treats the norms as constants of the gradient. `cirkd` pools 2x2 pixels (n = h w / 4
            nodes, matrices of n x n) and differentiates the norms.
        pool_scale: Side of a region in sides of the map, for `official`; below 1. 0.5 is that of the run script.

    Example:
        >>> import torch
        >>> student = torch.ones(1, 2, 4, 4)  # all nodes point the same way
        >>> teacher = torch.cat((torch.ones(1, 1, 4, 2), -torch.ones(1, 1, 4, 2)), dim=3)  # half of them opposite
        >>> round(pair_wise_distance(student, teacher).item(), 4)  # 8 of 16 pairs are off by 2
        2.0
    """
    kernel: tuple[int, ...] = (2, 2)
    if variant == "official":
        kernel = tuple(max(1, int(side * pool_scale)) for side in student_map.shape[2:])
    student, teacher = (
        _cosines(F.max_pool2d(features, kernel, ceil_mode=True).flatten(2), detach_norm=variant == "official")
        for features in (student_map, teacher_map)
    )
    return (teacher - student).square().mean()


def _cosines(nodes: Tensor, detach_norm: bool) -> Tensor:
    """(b, c, n) to (b, n, n). A node of length 0, as a ReLU leaves it, has the cosine 0 to all, and no gradient."""
    nodes = nodes.where(nodes.detach().norm(dim=1, keepdim=True) > ZERO_NORM, 0.0)
    if detach_norm:  # in the order of the authors' code, whose rounding wide maps show
        unit = nodes / (nodes.detach().square().sum(1, keepdim=True).sqrt() + 1e-8)
    else:
        unit = F.normalize(nodes, dim=1)
    return unit.transpose(1, 2) @ unit


class SKDSLoss(AbstractDistillationLoss):
    """Structured Knowledge Distillation for Semantic Segmentation.

    Three terms; one whose weight is 0 is left out, with all it costs:

    - `skds_pixel`: KD at temperature 1, `pixel_wise_divergence` or the authors' `summed_cross_entropy`.
    - `skds_pair`: `pair_wise_distance`.
    - `skds_adversarial`: minus the score a discriminator gives to the student's logits; may be negative. The
      discriminator learns beside the student, and the log has its `discriminator_loss`: see `Adversary`, and
      `Discriminator` for logits of less than 64x64.

    Presets:

    - `default`: the authors' run script, but for the pixel-wise term, which is the paper's mean.
    - `official`: the authors' run script. Its pixel-wise term grows with the batch of a process (they have 8 images,
      so that 10 is 80 times the mean) and wants a low learning rate.
    - `cirkd`: CIRKD's code of SKDS.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        weight: Weight of the pixel-wise term; 10 is the paper's and the run script's.
        pair_weight: Weight of the pair-wise term; 0.5 is the run script's, the paper says 10.
        adversarial_weight: Weight of the adversarial term; 0.1 is the paper's and the run script's.
        tap: The map of the pair-wise term, the one before the classifier in both codes.
        reduction: Of the pixel-wise term: `mean` over the pixels (paper), or their `sum` over h w, as in the
            authors' code.
        variant: Whose pair-wise term and whose optimizer of the discriminator: `official` (regions of half the map,
            SGD whose rate decays) or `cirkd` (2x2 pixels, Adam); see `pair_wise_distance` and `Adversary`.
        objective: Of the discriminator: `wgan-gp` (paper and authors' code) or `hinge` (CIRKD's code).

    Raises:
        ValueError: If logits are compared and the class counts differ, a feature is missing, or a value is out of
            range.

    Example:
        >>> from hf_segkd.losses import NetworkSpec, create_loss
        >>> spec = NetworkSpec({"decoder": 64, "logits": 19}, num_labels=19)
        >>> create_loss("skds", spec, spec, preset="cirkd", adversarial_weight=0).weights
        {'skds_pixel': 1.0, 'skds_pair': 10.0}
    """

    name: ClassVar[str] = "skds"
    matches: ClassVar[str] = "class probabilities, similarities of regions, a discriminator's score"
    couples_images: ClassVar[bool] = True
    presets: ClassVar[Presets] = {"preset": PRESETS}
    paper: ClassVar[Paper] = Paper(
        title="Structured Knowledge Distillation for Semantic Segmentation",
        venue="CVPR 2019",
        arxiv="1903.04197",
        bibtex="""@inproceedings{liu2019structured,
  title     = {Structured Knowledge Distillation for Semantic Segmentation},
  author    = {Liu, Yifan and Chen, Ke and Liu, Chris and Qin, Zengchang and Luo, Zhenbo and Wang, Jingdong},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages     = {2604--2613},
  year      = {2019}
}""",
        code="https://github.com/irfanICMLL/structure_knowledge_distillation/tree/ce208e1",
    )

    def __init__(
        self,
        student: NetworkSpec,
        teacher: NetworkSpec,
        *,
        weight: float = 10.0,
        pair_weight: float = 0.5,
        adversarial_weight: float = 0.1,
        tap: str = "decoder",
        reduction: Literal["mean", "sum"] = "mean",
        variant: Variant = "official",
        objective: Objective = "wgan-gp",
    ) -> None:
        require_choice("reduction", reduction, ("mean", "sum"))
        require_choice("variant", variant, get_args(Variant))
        require_choice("objective", objective, get_args(Objective))
        weights = {"skds_pixel": weight, "skds_pair": pair_weight, "skds_adversarial": adversarial_weight}
        weights = {term: value for term, value in weights.items() if value != 0}
        taps = ("logits",) if "skds_pixel" in weights or "skds_adversarial" in weights else ()
        if "skds_pair" in weights:
            taps += (tap,)
        super().__init__(student, teacher, student_taps=taps, teacher_taps=taps, weights=weights)
        if "logits" in taps:
            require_same_num_labels(self.name, student, teacher)
        self.pixel_wise = summed_cross_entropy if reduction == "sum" else pixel_wise_divergence
        self.variant: Variant = variant
        self.tap = tap
        if "skds_adversarial" in weights:
            optimizer: Literal["sgd", "adam"] = "adam" if variant == "cirkd" else "sgd"
            self.adversary = Adversary(student.num_labels, objective, optimizer)

    def terms(self, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """See the base class and this one; the labels are not read."""
        terms = {}
        if "logits" in self.student_taps:
            logits = student["logits"]
            teacher_logits = align(teacher["logits"], logits)
        if "skds_pixel" in self.weights:
            terms["skds_pixel"] = self.pixel_wise(logits, teacher_logits)
        if "skds_pair" in self.weights:
            student_map = student[self.tap]
            teacher_map = align(teacher[self.tap], student_map)
            terms["skds_pair"] = pair_wise_distance(student_map, teacher_map, self.variant)
        if "skds_adversarial" in self.weights:
            terms["skds_adversarial"] = self.adversary(logits, teacher_logits)
        return terms
