"""The backbone that a configuration describes: ours directly, any other through `AutoBackbone`."""

from transformers import PreTrainedConfig, PreTrainedModel

from .configuration_backbones import SegKDHRNetBackboneConfig, SegKDMobileNetV2Config, SegKDResNetConfig
from .modeling_mobilenet_v2 import SegKDMobileNetV2Backbone
from .modeling_resnet import SegKDResNetBackbone


def build_backbone(config: PreTrainedConfig, num_maps: int, roles: str) -> PreTrainedModel:
    """The backbone with random weights.

    Args:
        config: Its configuration.
        num_maps: Least number of maps the network needs.
        roles: What for, for the error message.

    Raises:
        ValueError: If the backbone returns fewer maps, or is an HRNet.
    """
    backbone = _build(config)
    if len(backbone.channels) < num_maps:
        raise ValueError(
            f"The backbone {config.model_type!r} returns {len(backbone.channels)} map(s), but the network needs "
            f"{num_maps}: {roles}. Set out_features or out_indices of backbone_config to at least that many of "
            f"{backbone.stage_names}."
        )
    return backbone


def _build(config: PreTrainedConfig) -> PreTrainedModel:
    if config.model_type == SegKDResNetConfig.model_type:
        return SegKDResNetBackbone(config)
    if config.model_type == SegKDMobileNetV2Config.model_type:
        return SegKDMobileNetV2Backbone(config)
    if config.model_type == SegKDHRNetBackboneConfig.model_type:
        raise ValueError(
            "HRNet is the backbone of HRNetForSemanticSegmentation alone: another head reads one or two of its "
            "branches, and what leads to the others would never be trained."
        )
    # Not at module level: importing AutoBackbone may import this very file, to register it there.
    from transformers import AutoBackbone

    return AutoBackbone.from_config(config)
