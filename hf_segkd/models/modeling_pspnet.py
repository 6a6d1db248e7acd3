"""PSPNet (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_pspnet import PSPNetConfig
from .modeling_context import SegKDContextModel
from .modeling_layers import ConvNorm, is_traced, resize


class PyramidPooling(nn.Module):
    """Averages the map over grids of several sizes and puts them beside it: the paper's Figure 3, c."""

    def __init__(self, in_channels: int, config: PSPNetConfig) -> None:
        super().__init__()
        self.pool_scales = config.pool_scales
        self.align_corners = config.align_corners
        self.branches = nn.ModuleList(ConvNorm(in_channels, config.channels, 1) for _ in config.pool_scales)
        self.project = ConvNorm(in_channels + len(config.pool_scales) * config.channels, config.channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Decoder map before its ReLU, (b, channels, h, w), from (b, in_channels, h, w).

        Raises:
            ValueError: In training with one image, see the message.
        """
        norm = self.project.norm
        # SyncBatchNorm is no BatchNorm2d: it sees the other processes' images as well.
        if 1 in self.pool_scales and norm.training and x.shape[0] == 1 and isinstance(norm, nn.BatchNorm2d):
            raise ValueError(
                "PSPNet cannot be trained on a batch of one image: pool scale 1 averages each channel to a single "
                "value, whose batch statistics are undefined. Use a batch of 2 or more, drop an incomplete last "
                "batch (dataloader_drop_last=True), or put the model into eval()."
            )
        maps = [x]
        for scale, branch in zip(self.pool_scales, self.branches, strict=True):
            pooled = F.relu(branch(average_pool(x, scale)), inplace=True)
            maps.append(resize(pooled, x.shape[-2:], self.align_corners))
        return self.project(torch.cat(maps, dim=1))


class PSPNetForSemanticSegmentation(SegKDContextModel):
    """PSPNet with `backbone`, `head` (pyramid pooling), a plain `classifier` convolution and an `auxiliary_head`.

    Example:
        >>> import torch
        >>> from hf_segkd import PSPNetConfig, PSPNetForSemanticSegmentation
        >>> network = PSPNetForSemanticSegmentation(PSPNetConfig(num_labels=19)).eval()
        >>> tuple(network(torch.randn(1, 3, 64, 96)).logits.shape)
        (1, 19, 64, 96)
    """

    config: PSPNetConfig

    def build_head(self, in_channels: int) -> PyramidPooling:
        """See the base class."""
        return PyramidPooling(in_channels, self.config)


def average_pool(x: Tensor, bins: int) -> Tensor:
    """`F.adaptive_avg_pool2d` of (b, c, h, w) to (b, c, bins, bins), by two products with matrices.

    ONNX has no adaptive pooling, and what PyTorch exports for it holds only for one image size.
    """
    rows, columns = averaging_matrix(x.shape[2], bins, x), averaging_matrix(x.shape[3], bins, x)
    narrow = x @ columns
    if is_traced():  # ncnn multiplies wrongly where the matrix is on the left
        return (narrow.transpose(2, 3) @ rows).transpose(2, 3)
    return rows.t() @ narrow


def averaging_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """(length, bins): each column averages the pixels of its bin, from floor(i l / n) up to ceil((i + 1) l / n).

    In a graph for one size it is a constant, which every runtime can take.
    """
    if is_traced() and isinstance(length, int):
        spans = [(i * length // bins, ((i + 1) * length + bins - 1) // bins) for i in range(bins)]
        rows = [[(first <= pixel < end) / (end - first) for first, end in spans] for pixel in range(length)]
        return torch.tensor(rows, dtype=like.dtype, device=like.device)
    bin_index = torch.arange(bins, device=like.device)
    first = bin_index * length // bins
    end = ((bin_index + 1) * length + bins - 1) // bins
    pixel = torch.arange(length, device=like.device)[:, None]
    inside = (pixel >= first) & (pixel < end)
    return inside.to(like.dtype) / (end - first).to(like.dtype)
