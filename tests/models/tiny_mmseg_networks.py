"""Small networks in mmsegmentation's form, by the name of their kind."""

import torch
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel

import hf_segkd  # noqa: F401  makes the Auto classes know them

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
    "pspnet": TINY_HEAD,
    "isanet": {**TINY_HEAD, "attention_channels": 4, "group_size": [2, 3]},
    "deeplabv3plus": {
        "layout": "mmsegmentation",
        "aspp_channels": 8,
        "decoder_channels": 8,
        "low_level_channels": 4,
        "auxiliary_channels": 6,
        "num_labels": 5,
    },
}


def tiny_network(kind: str, **kwargs) -> PreTrainedModel:
    config = AutoConfig.for_model(f"segkd-{kind}", **{"backbone_config": TINY_BACKBONE, **NETWORKS[kind], **kwargs})
    torch.manual_seed(0)
    return AutoModelForSemanticSegmentation.from_config(config).eval()
