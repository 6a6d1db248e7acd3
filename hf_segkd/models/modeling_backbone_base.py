"""Output and base class of the backbones.

A block of ours returns its residual sum; the ReLU after it is applied by whoever consumes it (the next block, the next
stage, or the backbone's output). So the map before the activation exists without hooks, and nothing overwrites it in
place.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput


@dataclass
class SegKDBackboneOutput(BackboneOutput):
    """`BackboneOutput` with the maps before the activation.

    Attributes:
        pre_activations: One (b, c, h, w) map for each of `feature_maps`; the same tensor where a stage ends without
            an activation (MobileNetV2's linear bottlenecks), and for the stem.
    """

    pre_activations: tuple[Tensor, ...] | None = None


class SegKDBackbone(BackboneMixin, PreTrainedModel):
    """What both backbones share: the output, and settings of `PreTrainedModel`."""

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    # Recomputing a block would update its batch norm's running statistics a second time.
    supports_gradient_checkpointing = False

    def get_input_embeddings(self) -> None:
        """None: images are not embedded (FSDP2 asks)."""

    def _output(
        self,
        sums: list[Tensor],
        maps: list[Tensor],
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> SegKDBackboneOutput | tuple:
        """Packs the maps of the wanted stages, from those of all, before (`sums`) and after (`maps`) the activation."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        output = SegKDBackboneOutput(
            feature_maps=tuple(maps[i] for i in self.out_indices),
            hidden_states=tuple(maps) if output_hidden_states else None,
            pre_activations=tuple(sums[i] for i in self.out_indices),
        )
        return output if return_dict else output.to_tuple()
