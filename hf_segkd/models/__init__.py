"""Segmentation networks. Flat files that import only siblings, torch and transformers: the Hub can ship them.

Names are looked up when first used: transformers asks for our configurations while it is itself half loaded, and
then the networks can't be imported yet.
"""

import importlib

_HOME = {
    "DeepLabV3PlusConfig": "configuration_deeplabv3plus",
    "DeepLabV3PlusForSemanticSegmentation": "modeling_deeplabv3plus",
    "HRNetConfig": "configuration_hrnet",
    "HRNetForSemanticSegmentation": "modeling_hrnet",
    "ISANetConfig": "configuration_isanet",
    "ISANetForSemanticSegmentation": "modeling_isanet",
    "MultiBandImageProcessor": "image_processing_multiband",
    "PSPNetConfig": "configuration_pspnet",
    "PSPNetForSemanticSegmentation": "modeling_pspnet",
    "SegKDBackboneOutput": "modeling_backbone_base",
    "SegKDHRNetBackbone": "modeling_hrnet",
    "SegKDHRNetBackboneConfig": "configuration_backbones",
    "SegKDMobileNetV2Backbone": "modeling_mobilenet_v2",
    "SegKDMobileNetV2Config": "configuration_backbones",
    "SegKDResNetBackbone": "modeling_resnet",
    "SegKDResNetConfig": "configuration_backbones",
    "SemanticSegmenterOutputWithFeatures": "modeling_segmentation",
    "convert_attnfd_state_dict": "convert_checkpoint",
    "convert_mmseg_hrnet_state_dict": "convert_mmseg_hrnet",
    "convert_mmseg_state_dict": "convert_mmseg",
    "load_pretrained_backbone": "pretrained_backbones",
    "read_checkpoint": "convert_checkpoint",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'hf_segkd.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hf_segkd.models.{_HOME[name]}"), name)
