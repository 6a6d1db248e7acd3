"""SKDS: pixel-wise, pair-wise and adversarial distillation together (Liu et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from hf_segkd.losses.adapters import ZERO_NORM, align
from hf_segkd.losses.adversary import Adversary, Objective
from hf_segkd.losses.base import AbstractDistillationLoss, require_choice, require_positive, require_same_num_labels
from hf_segkd.losses.kd import pixel_wise_divergence
from hf_segkd.types import Features, NetworkSpec, Paper


def summed_cross_entropy(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""$-\frac{1}{h w} \sum p^t \log p^s$, in nats, summed over the images, as in the authors' code.

    Its gradient is b times that of `pixel_wise_divergence`, its value larger by the teacher's entropy.

    Args:
        student_logits: (b, k, h, w).
        teacher_logits: (b, k, h, w).
    """
    height, width = student_logits.shape[2:]
    return -(teacher_logits.softmax(1) * student_logits.log_softmax(1)).sum() / (height * width)


def pair_wise_distance(
    student_map: Tensor,
    teacher_map: Tensor,
    variant: Literal["official", "cirkd"] = "official",
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
        pool_scale: Side of a region in sides of the map, for `official`.
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


class Setting(NamedTuple):
    """What a repository trains with."""

    weight: float
    pair_weight: float
    adversarial_weight: float
    pixel_wise: Callable[[Tensor, Tensor], Tensor]
    pair_variant: Literal["official", "cirkd"]
    objective: Objective
    optimizer: Literal["sgd", "adam"]


PRESETS = {
    "default": Setting(10.0, 0.5, 0.1, pixel_wise_divergence, "official", "wgan-gp", "sgd"),
    "official": Setting(10.0, 0.5, 0.1, summed_cross_entropy, "official", "wgan-gp", "sgd"),
    "cirkd": Setting(1.0, 10.0, 0.001, pixel_wise_divergence, "cirkd", "hinge", "adam"),
}


class SKDSLoss(AbstractDistillationLoss):
    """Structured Knowledge Distillation for Semantic Segmentation.

    Three terms; one whose weight is 0 is left out, with all it costs:

    - `skds_pixel`: `pixel_wise_divergence` at temperature 1; with `official` the authors' `summed_cross_entropy`,
      which grows with the batch of a process (they have 8 images, so that 10 is 80 times the mean).
    - `skds_pair`: `pair_wise_distance`.
    - `skds_adversarial`: minus the score a discriminator gives to the student's logits; may be negative. The
      discriminator learns beside the student, and the log has its `discriminator_loss`: see `Adversary`, and
      `Discriminator` for logits of less than 64x64.

    Args:
        student: What the student offers.
        teacher: What the teacher offers.
        preset: `default` and `official` follow the authors' code, with WGAN-GP and SGD, `cirkd` CIRKD's, with its
            pair-wise term, hinge and Adam.
        weight: Weight of the pixel-wise term: 10 (paper, whose formula is a mean over the pixels, and `official`,
            whose sum wants a low learning rate) or 1 (`cirkd`).
        pair_weight: 0.5 (the authors' run script; the paper says 10) or 10 (`cirkd`).
        adversarial_weight: 0.1 (run script and paper) or 0.001 (`cirkd`).
        tap: The map of the pair-wise term, the one before the classifier in both codes.
        pool_scale: See `pair_wise_distance`; 0.5 by default (run script), not for `cirkd`.
        objective: `wgan-gp` or `hinge`; the preset's by default.
        discriminator_learning_rate: 4e-4 by default, as in both codes.

    Raises:
        ValueError: If logits are compared and the class counts differ, a tap is missing, a value is out of range or
            belongs to a term that is left out.
    """

    name: ClassVar[str] = "skds"
    matches: ClassVar[str] = "class probabilities, similarities of regions, a discriminator's score"
    couples_images: ClassVar[bool] = True
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
        preset: Literal["default", "official", "cirkd"] = "default",
        weight: float | None = None,
        pair_weight: float | None = None,
        adversarial_weight: float | None = None,
        tap: str = "decoder",
        pool_scale: float | None = None,
        objective: Objective | None = None,
        discriminator_learning_rate: float | None = None,
    ) -> None:
        require_choice("preset", preset, tuple(PRESETS))
        setting = PRESETS[preset]
        weights = {
            "skds_pixel": setting.weight if weight is None else weight,
            "skds_pair": setting.pair_weight if pair_weight is None else pair_weight,
            "skds_adversarial": setting.adversarial_weight if adversarial_weight is None else adversarial_weight,
        }
        weights = {term: value for term, value in weights.items() if value != 0}
        taps = ("logits",) if "skds_pixel" in weights or "skds_adversarial" in weights else ()
        if "skds_pair" in weights:
            taps += (tap,)
        super().__init__(student, teacher, student_taps=taps, teacher_taps=taps, weights=weights)
        if "logits" in taps:
            require_same_num_labels(self.name, student, teacher)
        if pool_scale is not None and (setting.pair_variant == "cirkd" or "skds_pair" not in weights):
            raise ValueError("pool_scale is for the authors' pair-wise term: not for preset cirkd or pair_weight 0.")
        if "skds_adversarial" not in weights and (objective, discriminator_learning_rate) != (None, None):
            raise ValueError("objective and discriminator_learning_rate need an adversarial_weight above 0.")
        self.pool_scale = 0.5 if pool_scale is None else pool_scale
        require_positive("pool_scale", self.pool_scale)
        if self.pool_scale >= 1:
            raise ValueError(f"pool_scale is {pool_scale}; it must be below 1: a lone node has no pairs.")
        self.pixel_wise = setting.pixel_wise
        self.pair_variant = setting.pair_variant
        self.tap = tap
        if "skds_adversarial" in weights:
            rate = 4e-4 if discriminator_learning_rate is None else discriminator_learning_rate
            self.adversary = Adversary(student.num_labels, objective or setting.objective, setting.optimizer, rate)

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
            terms["skds_pair"] = pair_wise_distance(student_map, teacher_map, self.pair_variant, self.pool_scale)
        if "skds_adversarial" in self.weights:
            terms["skds_adversarial"] = self.adversary(logits, teacher_logits)
        return terms
