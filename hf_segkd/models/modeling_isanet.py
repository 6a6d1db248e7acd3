"""ISANet (Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation", arXiv 1907.12273)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_isanet import ISANetConfig
from .modeling_context import SegKDContextModel
from .modeling_layers import ConvNorm, is_traced


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

    def forward(self, x: Tensor, size: tuple[int, int], local: bool) -> Tensor:
        """Attends within groups of the map.

        Args:
            x: (b, c, h, w), both sides multiples of a block's.
            size: (height, width) of a block.
            local: Whether a group is the pixels of one block, else the pixels at the same place of all blocks.

        Returns:
            A map of the shape of `x`.
        """
        query, key = (to_groups(project_twice(layers, x), size, local) for layers in (self.query, self.key))
        attended = F.scaled_dot_product_attention(query, key, to_groups(self.value(x), size, local))
        return F.relu(self.output(from_groups(attended, x.shape[-2:], size, local)), inplace=True)


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
        missing_rows, missing_columns = (height - h % height) % height, (width - w % width) % width
        top, left = missing_rows // 2, missing_columns // 2
        padded = F.pad(x, (left, missing_columns - left, top, missing_rows - top))
        context = self.global_attention(padded, (height, width), local=False)
        context = self.local_attention(context, (height, width), local=True)
        context = context[:, :, top : top + h, left : left + w]
        return self.project(torch.cat([context, x], dim=1))


class ISANetForSemanticSegmentation(SegKDContextModel):
    """ISANet with `backbone`, `head` (attention), a plain `classifier` convolution and an `auxiliary_head`.

    Example:
        >>> import torch
        >>> from hf_segkd import ISANetConfig, ISANetForSemanticSegmentation
        >>> network = ISANetForSemanticSegmentation(ISANetConfig(num_labels=19)).eval()
        >>> tuple(network(torch.randn(1, 3, 64, 96)).logits.shape)
        (1, 19, 64, 96)
    """

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


def to_groups(x: Tensor, size: tuple[int, int], local: bool) -> Tensor:
    """(b, c, h, w), cut into blocks of `size` = (height, width), to (b, groups, pixels of a group, c)."""
    if has_fixed_sides(x.shape[-2:]):
        channels, columns, place = x.shape[1], x.shape[3] // size[1], size[0] * size[1]
        rows = x.reshape(-1, size[0], columns, size[1])
        blocks = rows.transpose(1, 2).reshape(-1, channels, x.shape[2] // size[0] * columns, place).transpose(2, 3)
    else:
        # Not by reshaping: a graph of any image size can't know that the sides divide by the numbers of blocks.
        blocks = F.unfold(x, size, stride=size).unflatten(1, (x.shape[1], size[0] * size[1]))  # b c place block
    return blocks.permute((0, 3, 2, 1) if local else (0, 2, 3, 1))


def from_groups(groups: Tensor, sides: tuple[int, int], size: tuple[int, int], local: bool) -> Tensor:
    """The inverse of `to_groups`, to a map of `sides` = (h, w)."""
    blocks = groups.permute((0, 3, 2, 1) if local else (0, 3, 1, 2))
    if has_fixed_sides(sides):
        rows = blocks.transpose(2, 3).reshape(-1, sides[1] // size[1], size[0], size[1]).transpose(1, 2)
        return rows.reshape(-1, groups.shape[3], *sides)
    return F.fold(blocks.flatten(1, 2), sides, size, stride=size)


def has_fixed_sides(sides: tuple[int, int]) -> bool:
    """Whether a graph for one size is being made: reshaping does what `unfold` does, and every runtime has it."""
    return is_traced() and all(isinstance(side, int) for side in sides)
