"""Output, loss and base class of the segmentation networks."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput


@dataclass
class SemanticSegmenterOutputWithFeatures(SemanticSegmenterOutput):
    """`SemanticSegmenterOutput` with the maps that distillation compares.

    Attributes:
        loss: Mean cross-entropy over the labelled pixels in nats, when labels were given.
        logits: (b, k, hh, ww) at the resolution of `pixel_values`: resized once, with the network's own
            `align_corners`, so that evaluation, pipeline and exported model all see the same scores.
        features: Tap name -> map, when asked for; the names are the model's `tap_channels`.
    """

    features: dict[str, Tensor] | None = None


class SegKDSegmentationModel(PreTrainedModel):
    """Base of the segmentation networks: initialisation and settings of `PreTrainedModel`."""

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # The loss is a mean over the batch; Trainer's token count leaves pixels of ignore index 255 out of account.
    accepts_loss_kwargs = False
    # Recomputing a block would update its batch norm's running statistics a second time.
    supports_gradient_checkpointing = False

    def get_input_embeddings(self) -> None:
        """None: images are not embedded (FSDP2 asks)."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight)  # fan_in, as in the AttnFD code
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())  # PyTorch's default, which that code keeps
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


class ConvNorm(nn.Module):
    """Convolution of stride 1 that keeps the size, without bias, and batch norm; the caller applies the ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, h, w)."""
        return self.norm(self.conv(x))


class SeparableConvNorm(nn.Module):
    """`ConvNorm` of each channel alone, ReLU, 1x1 `ConvNorm` across channels; the caller applies the last ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvNorm(in_channels, in_channels, kernel_size, dilation, groups=in_channels)
        self.pointwise = ConvNorm(in_channels, out_channels, 1)

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The last batch norm."""
        return self.pointwise.norm

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) to (b, out_channels, h, w)."""
        return self.pointwise(F.relu(self.depthwise(x), inplace=True))


def resize(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear resize of (b, c, h, w) maps to `size` = (height, width)."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy in nats, averaged over the pixels whose label is not `ignore_index`.

    Computed in fp32 (or fp64). Without a labelled pixel it is 0 with zero gradients, where the built-in mean is NaN.

    Args:
        logits: (b, k, hh, ww).
        labels: Class of each pixel, (b, hh, ww) integers in 0..k-1 or `ignore_index`.
        ignore_index: Label of the pixels to leave out.

    Raises:
        ValueError: If the shapes do not fit, or, on a CPU, if a label is out of range (a GPU would have to wait for
            the answer, and aborts with a device-side assertion instead).
    """
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(labels.shape) != expected:
        raise ValueError(
            f"labels must have the images' shape (batch, height, width) = {tuple(expected)}, got {tuple(labels.shape)}."
        )
    labels = labels.long()
    if logits.dtype != torch.float64:
        logits = logits.float()
    try:
        total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    except IndexError as error:
        raise ValueError(
            f"labels must be 0 to {logits.shape[1] - 1} or {ignore_index} (ignored): {error}. Check num_labels and the "
            "data set's label conversion."
        ) from error
    return total / (labels != ignore_index).sum().clamp(min=1)
