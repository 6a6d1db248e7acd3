"""ISANet (Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation", arXiv 1907.12273)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_isanet import ISANetConfig
from .modeling_context import SegKDContextModel
from .modeling_segmentation import ConvNorm


class GroupedSelfAttention(nn.Module):
    """Self-attention among the pixels of a group.

    The projections are 1x1 convolutions, which don't care about groups: they see the whole map, and only the
    attention itself is done group by group.
    """

    def __init__(self, channels: int, attention_channels: int) -> None:
        super().__init__()
        self.query = two_convs(channels, attention_channels)
        self.key = two_convs(channels, attention_channels)
        self.value = nn.Conv2d(channels, channels, 1)
        self.output = ConvNorm(channels, channels, 1)

    def forward(self, x: Tensor, grid: tuple[int, int], size: tuple[int, int], local: bool) -> Tensor:
        """Attends within groups of the map.

        Args:
            x: (b, c, rows * height, columns * width).
            grid: (rows, columns) of blocks on the map.
            size: (height, width) of a block.
            local: Whether a group is the pixels of one block, else the pixels at the same place of all blocks.

        Returns:
            A map of the shape of `x`.
        """
        query, key = (to_groups(project_twice(layers, x), grid, size, local) for layers in (self.query, self.key))
        attended = F.scaled_dot_product_attention(query, key, to_groups(self.value(x), grid, size, local))
        return F.relu(self.output(from_groups(attended, grid, size, local)), inplace=True)


class InterlacedSelfAttention(nn.Module):
    """Attention among pixels that are far apart, then among neighbours: the paper's Figure 2."""

    def __init__(self, in_channels: int, config: ISANetConfig) -> None:
        super().__init__()
        self.group_size = config.group_size
        self.reduce = ConvNorm(in_channels, config.channels, 3)
        self.global_attention = GroupedSelfAttention(config.channels, config.attention_channels)
        self.local_attention = GroupedSelfAttention(config.channels, config.attention_channels)
        self.project = ConvNorm(2 * config.channels, config.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Decoder map before its ReLU, (b, channels, h, w), from (b, in_channels, h, w).

        The map is padded with zeros on all sides to whole blocks; the padding takes part in the attention, as in
        mmsegmentation.
        """
        x = F.relu(self.reduce(x), inplace=True)
        h, w = x.shape[-2:]
        height, width = self.group_size
        rows, columns = -(-h // height), -(-w // width)
        top, left = (rows * height - h) // 2, (columns * width - w) // 2
        bottom, right = rows * height - h - top, columns * width - w - left
        padded = F.pad(x, (left, right, top, bottom))
        context = self.global_attention(padded, (rows, columns), (height, width), local=False)
        context = self.local_attention(context, (rows, columns), (height, width), local=True)
        context = context[:, :, top : top + h, left : left + w]
        return self.project(torch.cat([context, x], dim=1))


class ISANetForSemanticSegmentation(SegKDContextModel):
    """ISANet with `backbone`, `head` (attention), a plain `classifier` convolution and an `auxiliary_head`."""

    config: ISANetConfig

    def build_head(self, in_channels: int) -> InterlacedSelfAttention:
        """See the base class."""
        return InterlacedSelfAttention(in_channels, self.config)


def two_convs(in_channels: int, channels: int) -> nn.ModuleList:
    """The two 1x1 convolutions of a query's or key's projection."""
    return nn.ModuleList([ConvNorm(in_channels, channels, 1), ConvNorm(channels, channels, 1)])


def project_twice(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Applies `two_convs`, each followed by a ReLU."""
    first, second = layers
    return F.relu(second(F.relu(first(x), inplace=True)), inplace=True)


def to_groups(x: Tensor, grid: tuple[int, int], size: tuple[int, int], local: bool) -> Tensor:
    """(b, c, rows * height, columns * width) to (b, groups, pixels of a group, c)."""
    blocks = x.unflatten(3, (grid[1], size[1])).unflatten(2, (grid[0], size[0]))  # b c rows height columns width
    order = (0, 2, 4, 3, 5, 1) if local else (0, 3, 5, 2, 4, 1)
    return blocks.permute(order).flatten(3, 4).flatten(1, 2)


def from_groups(groups: Tensor, grid: tuple[int, int], size: tuple[int, int], local: bool) -> Tensor:
    """The inverse of `to_groups`."""
    outer, inner = (grid, size) if local else (size, grid)
    blocks = groups.unflatten(2, inner).unflatten(1, outer)
    order = (0, 5, 1, 3, 2, 4) if local else (0, 5, 3, 1, 4, 2)
    return blocks.permute(order).flatten(4, 5).flatten(2, 3)
