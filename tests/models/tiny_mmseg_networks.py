"""Small networks in mmsegmentation's form, by the name of their kind."""

import torch
from transformers import PreTrainedModel

from hf_segkd.models import (
    DeepLabV3PlusConfig,
    DeepLabV3PlusForSemanticSegmentation,
    ISANetConfig,
    ISANetForSemanticSegmentation,
    PSPNetConfig,
    PSPNetForSemanticSegmentation,
)

TINY_BACKBONE = {
    "model_type": "segkd-resnet",
    "width": 8,
    "depths": [1, 1, 2, 2],
    "strides": [1, 2, 1, 1],
    "dilations": [[1], [1], [1, 2], [2, 4]],
    "deep_stem": True,
    "dilate_second_conv": False,
    "out_features": ["stage1", "stage3", "stage4"],
}
TINY_HEAD = {"channels": 8, "auxiliary_channels": 6, "num_labels": 5}
NETWORKS = {
    "pspnet": (PSPNetForSemanticSegmentation, PSPNetConfig, TINY_HEAD),
    "isanet": (
        ISANetForSemanticSegmentation,
        ISANetConfig,
        {**TINY_HEAD, "attention_channels": 4, "group_size": [2, 3]},
    ),
    "deeplabv3plus": (
        DeepLabV3PlusForSemanticSegmentation,
        DeepLabV3PlusConfig,
        {
            "layout": "mmsegmentation",
            "aspp_channels": 8,
            "decoder_channels": 8,
            "low_level_channels": 4,
            "auxiliary_channels": 6,
            "num_labels": 5,
        },
    ),
}


def tiny_network(kind: str, **kwargs) -> PreTrainedModel:
    model_class, config_class, head = NETWORKS[kind]
    torch.manual_seed(0)
    return model_class(config_class(**{"backbone_config": TINY_BACKBONE, **head, **kwargs})).eval()
