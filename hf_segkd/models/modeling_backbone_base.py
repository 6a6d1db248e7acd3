"""Output and base class of the backbones.

A block of ours returns its residual sum; the ReLU after it is applied by whoever consumes it (the next block, the next
stage, or the backbone's output). So the map before the activation exists without hooks, and nothing overwrites it in
place.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput


@dataclass
class SegKDBackboneOutput(BackboneOutput):
    """`BackboneOutput` with the maps before the activation.

    Attributes:
        pre_activations: One (b, c, h, w) map for each of `feature_maps`; the same tensor where a stage ends without
            an activation (MobileNetV2's linear bottlenecks), and for the stem.
        pre_hidden_states: The same for each of `hidden_states`, when those were asked for.
    """

    pre_activations: tuple[Tensor, ...] | None = None
    pre_hidden_states: tuple[Tensor, ...] | None = None


class SegKDBackbone(BackboneMixin, PreTrainedModel):
    """What our backbones share: the output, and settings of `PreTrainedModel`.

    Attributes:
        levels: Those of `stage_names` that are the last at their resolution in the undilated network, from stride 4
            on: the features "stage1", "stage2", ... of a segmentation network on this backbone.
    """

    levels: tuple[str, ...]

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False
    # Recomputing a block would update its batch norm's running statistics a second time.
    supports_gradient_checkpointing = False

    def get_input_embeddings(self) -> None:
        """None: images are not embedded (FSDP2 asks)."""

    def level_norms(self) -> dict[str, nn.BatchNorm2d]:
        """The batch norm that each of `levels` ends in, before its shortcut is added; none where it ends in several."""
        raise NotImplementedError

    def stages(self, pixel_values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of all of `stage_names`, before their activation and after it.

        Args:
            pixel_values: Normalised images, (b, c, hh, ww), of any size.
        """
        raise NotImplementedError

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SegKDBackboneOutput | tuple:
        """The maps of those of `stage_names` that are in `out_features`.

        Args:
            pixel_values: Normalised images, (b, c, hh, ww), of any size.
            output_hidden_states: Also return the maps of all of `stage_names`.
            return_dict: False returns a tuple.
        """
        sums, maps = self.stages(pixel_values)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        output = SegKDBackboneOutput(
            feature_maps=tuple(maps[i] for i in self.out_indices),
            hidden_states=tuple(maps) if output_hidden_states else None,
            pre_activations=tuple(sums[i] for i in self.out_indices),
            pre_hidden_states=tuple(sums) if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()


def stage_channels(backbone: PreTrainedModel) -> dict[str, int]:
    """Feature name -> channels of the maps that `stage_maps` gives."""
    if isinstance(backbone, SegKDBackbone):
        of_stage = dict(zip(backbone.stage_names, backbone.num_features, strict=True))
        channels = {f"stage{i}": of_stage[level] for i, level in enumerate(backbone.levels, start=1)}
        channels["low_level"] = channels["stage1"]
    else:
        channels = dict(zip(backbone.out_features, backbone.channels, strict=True))
    return channels | {f"{name}_pre": count for name, count in channels.items()}


def stage_maps(backbone: PreTrainedModel, output: BackboneOutput) -> dict[str, Tensor]:
    """The maps of the backbone's stages by their feature names, after the activation and (`_pre`) before it.

    Ours gives each of its `levels` as "stage1", "stage2", ... (the first as "low_level" too); any other backbone the
    maps it is configured to return, by its own stage names and on both sides alike.

    Args:
        backbone: The backbone.
        output: What it returned; from ours with its hidden states.
    """
    if isinstance(backbone, SegKDBackbone):
        names = ["low_level", *(f"stage{i}" for i in range(1, len(backbone.levels) + 1))]
        indices = [backbone.stage_names.index(level) for level in (backbone.levels[0], *backbone.levels)]
        after = [output.hidden_states[i] for i in indices]
        before = [output.pre_hidden_states[i] for i in indices]
    else:
        names, after = backbone.out_features, output.feature_maps
        before = after
    maps = dict(zip(names, after, strict=True))
    return maps | {f"{name}_pre": sums for name, sums in zip(names, before, strict=True)}
