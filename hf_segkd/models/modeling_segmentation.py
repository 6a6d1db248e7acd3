"""Output, loss and base class of the segmentation networks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput

from .configuration_segmentation import SegKDSegmentationConfig
from .modeling_backbone_base import SegKDBackbone, stage_channels, stage_maps
from .modeling_layers import resize


@dataclass
class SemanticSegmenterOutputWithFeatures(SemanticSegmenterOutput):
    """`SemanticSegmenterOutput` with the maps that distillation compares.

    Attributes:
        loss: Mean cross-entropy over the labelled pixels in nats, when labels were given.
        logits: (b, k, hh, ww) at the resolution of `pixel_values`: resized once, with the network's own
            `align_corners`, so that evaluation, pipeline and exported model all see the same scores.
        features: Feature name -> map, when asked for; the names are the model's `tap_channels`.
    """

    features: dict[str, Tensor] | None = None


class SegKDSegmentationModel(PreTrainedModel):
    """Base of the segmentation networks: a `backbone`, a head and a plain `classifier` convolution.

    Building one never loads weights; `load_pretrained_backbone` does, when asked. A subclass builds the modules, with
    dropout in `classifier_dropout` and maybe an `auxiliary_head` on the backbone's map before the last, and says in
    `decode` how they are applied.

    Attributes:
        reads_stages: Whether the head reads all stages of the backbone, not just those in its `out_features`.
    """

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # The loss is a mean over the batch; Trainer's token count leaves pixels of ignore index 255 out of account.
    accepts_loss_kwargs = False
    # Recomputing a block would update its batch norm's running statistics a second time.
    supports_gradient_checkpointing = False
    _no_split_modules = ["BasicBlock", "Bottleneck", "InvertedResidual"]  # noqa: RUF012  transformers' own form
    reads_stages = False

    def __init__(self, config: SegKDSegmentationConfig) -> None:
        super().__init__(config)
        self.auxiliary_head = None

    def decode(self, maps: BackboneOutput, keep_sums: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """From the backbone's maps to the map that enters the classifier.

        Args:
            maps: What the backbone returned, with all stages if `reads_stages`.
            keep_sums: Whether the maps before an activation are features, and so must not be overwritten by it.

        Returns:
            That map before its ReLU, (b, c, h, w); and features of this architecture, name -> map.
        """
        raise NotImplementedError

    def own_tap_channels(self) -> dict[str, int]:
        """Feature name -> channels of the features that `decode` returns."""
        return {}

    def batch_norms(self) -> dict[str, nn.BatchNorm2d]:
        """Feature name -> batch norm whose output (plus a shortcut) is that map; a subclass adds those of its head."""
        if not isinstance(self.backbone, SegKDBackbone):
            return {}
        of_level = self.backbone.level_norms()
        norms = {f"stage{i}_pre": norm for i, norm in enumerate(of_level.values(), start=1)}
        ends = {"low_level_pre": self.backbone.levels[0], "backbone": self.backbone.out_features[-1]}
        return norms | {tap: of_level[level] for tap, level in ends.items() if level in of_level}

    @property
    def tap_channels(self) -> dict[str, int]:
        """Feature name -> channels of the maps that `output_features=True` returns."""
        last, decoder = self.backbone.channels[-1], self.classifier.in_channels
        return {
            "backbone": last,
            "backbone_post": last,
            "decoder": decoder,
            "decoder_pre": decoder,
            "logits": self.classifier.out_channels,
            **stage_channels(self.backbone),
            **self.own_tap_channels(),
        }

    @property
    def tap_norms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Feature name -> weight and bias, (c,) each, of the batch norm whose output (plus a shortcut) is that map."""
        return {tap: (norm.weight.detach(), norm.bias.detach()) for tap, norm in self.batch_norms().items()}

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_features: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        loss_function: Callable[[Tensor, Tensor, int], Tensor] | None = None,
        resize_logits: bool = True,
    ) -> SemanticSegmenterOutputWithFeatures | tuple:
        """Scores of each class for each pixel.

        Args:
            pixel_values: Normalised images, (b, c, hh, ww), of any size.
            labels: Class of each pixel, (b, hh, ww), 0..k-1 or `config.semantic_loss_ignore_index`.
            output_features: Also return `features`, as (b, c, h, w) maps. Of every network: `backbone` (the backbone's
                last map, *before* its activation), `decoder` (the map that enters dropout and classifier, after its
                ReLU), `logits` (the classifier's); and of the backbone, whatever its `out_features`, `stage1` to
                `stage4`: the last maps at the strides 4, 8 and 16 and the last of all (of a MobileNetV2 its stages 2,
                3, 5 and 7), the first also as `low_level`. The other side of each activation is in `backbone_post`,
                `decoder_pre`, `low_level_pre` and `stage1_pre` to `stage4_pre`; where a stage has none (MobileNetV2,
                most backbones of transformers) both sides are the same map, and one that ends in a ReLU only offers
                its maps after it. The stages of a transformers backbone are those in its `out_features`, by the names
                there, without `low_level`. The class says which features it adds.
            output_hidden_states: Also return the backbone's maps of all stages.
            return_dict: False returns a tuple.
            loss_function: Takes logits (b, k, hh, ww), labels and the ignored label and returns the `loss`; in
                training it gets the auxiliary head's logits too. By default `segmentation_loss`.
            resize_logits: False leaves `logits` at the classifier's resolution, where no labels are given: of a large
                image and many classes they take gigabytes at its own.

        Returns:
            `logits` at the resolution of `pixel_values`; `loss` when labels were given, in training with the auxiliary
            head's part if there is one.

        Raises:
            ValueError: If `pixel_values` are no batch of floats, labels do not fit them, or in training a single image
                is given to a head that can't be trained on one.
        """
        if pixel_values.dim() != 4 or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be normalised images, floats of shape (batch, channels, height, width), got "
                f"{pixel_values.dtype} of shape {tuple(pixel_values.shape)}: an image processor makes them."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        needs_stages = self.reads_stages or (bool(output_features) and isinstance(self.backbone, SegKDBackbone))
        maps = self.backbone.forward_with_filtered_kwargs(
            pixel_values, output_hidden_states=output_hidden_states or needs_stages, return_dict=True
        )
        decoder_pre, taps = self.decode(maps, keep_sums=bool(output_features))
        decoder = F.relu(decoder_pre, inplace=not output_features)
        head_logits = self.classifier(self.classifier_dropout(decoder))
        logits = head_logits
        if resize_logits:
            logits = resize(head_logits, pixel_values.shape[-2:], self.config.align_corners)

        loss, features = None, None
        if labels is not None:
            loss_function = loss_function or segmentation_loss
            loss = loss_function(logits, labels, self.config.semantic_loss_ignore_index)
            if self.training and self.auxiliary_head is not None:
                loss = loss + self.auxiliary_head.loss(maps.feature_maps[-2], labels, loss_function)
        if output_features:
            before = maps.get("pre_activations") or maps.feature_maps
            features = {
                "backbone": before[-1],
                "backbone_post": maps.feature_maps[-1],
                "decoder": decoder,
                "decoder_pre": decoder_pre,
                "logits": head_logits,
                **stage_maps(self.backbone, maps),
                **taps,
            }
        output = SemanticSegmenterOutputWithFeatures(
            loss=loss,
            logits=logits,
            hidden_states=maps.hidden_states if output_hidden_states else None,
            features=features,
        )
        return output if return_dict else output.to_tuple()

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
