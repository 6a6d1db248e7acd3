"""`NetworkSpec`, `Paper`: types that losses, trainer and hub share.

Shapes: b batch, c channels, k classes, h w feature map, hh ww image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# Feature name -> map. `logits` is (b, k, h, w) at the head's resolution, the others are (b, c, h, w).
Features = Mapping[str, Tensor]


@dataclass(frozen=True)
class Paper:
    """Publication of a method, for the README's method table and a model card's citation."""

    title: str
    venue: str
    arxiv: str
    bibtex: str
    code: str | None = None


@dataclass(frozen=True)
class NetworkSpec:
    """What a loss must know of a network before it has seen a feature map.

    Args:
        channels: Channels of each feature the network offers, e.g. `{"decoder": 256, "logits": 21}`.
        num_labels: Number of classes k.
        ignore_index: Label of the pixels that have no class.
        norms: Weight and bias, (c,) each, of the batch norm that ends in a feature, for the features that have one.
    """

    channels: Mapping[str, int]
    num_labels: int
    ignore_index: int = 255
    norms: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)
