"""Small networks, and weights and images that depend on shapes alone, so that any implementation can rebuild them."""

import torch
from hashed_numbers import hashed
from torch import nn

from hf_segkd.models import (
    DeepLabV3PlusConfig,
    DeepLabV3PlusForSemanticSegmentation,
    HRNetConfig,
    HRNetForSemanticSegmentation,
)

HEAD = {"aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 4, "num_labels": 5}
TINY = {
    "resnet": {
        "backbone_config": {
            "model_type": "segkd-resnet",
            "width": 8,
            "depths": [1, 1, 1, 2],
            "strides": [1, 2, 2, 1],
            "dilations": [[1], [1], [1], [2, 2]],
            "out_features": ["stage1", "stage4"],
        }
    },
    "bottleneck": {
        "backbone_config": {
            "model_type": "segkd-resnet",
            "layer_type": "bottleneck",
            "width": 8,
            "depths": [1, 1, 1, 1],
            "out_features": ["stage1", "stage4"],
        }
    },
    "mobilenet_v2": {"backbone": "mobilenet_v2", "depth_multiplier": 0.25},
}


def tiny_config(kind: str = "resnet", **kwargs) -> DeepLabV3PlusConfig:
    return DeepLabV3PlusConfig(**{**HEAD, **TINY[kind], **kwargs})


def tiny_model(kind: str = "resnet", **kwargs) -> DeepLabV3PlusForSemanticSegmentation:
    torch.manual_seed(0)
    return DeepLabV3PlusForSemanticSegmentation(tiny_config(kind, **kwargs)).eval()


TINY_HRNET = {"width": 4, "stem_blocks": 1, "num_modules": [1, 2, 1], "num_blocks": 1}


def tiny_hrnet(**kwargs) -> HRNetForSemanticSegmentation:
    torch.manual_seed(0)
    return HRNetForSemanticSegmentation(
        HRNetConfig(**{"backbone_config": TINY_HRNET, "num_labels": 5, **kwargs})
    ).eval()


@torch.no_grad()
def fill_weights(model: nn.Module) -> None:
    """Weights of every convolution and batch norm by a rule that knows their shapes alone."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            weight, bias = module.weight, module.bias
            fan_in = weight.numel() // weight.shape[0]
            weight.copy_(hashed(weight.shape, weight.numel() % 89, (12 / fan_in) ** 0.5))
            if bias is not None:
                bias.copy_(hashed(bias.shape, bias.numel() % 89 + 1, 0.2))
        elif isinstance(module, nn.BatchNorm2d):
            shape = (module.num_features,)
            k = module.num_features % 89
            module.weight.copy_(1 + hashed(shape, k + 2, 0.4))
            module.bias.copy_(hashed(shape, k + 3, 0.4))
            module.running_mean.copy_(hashed(shape, k + 4, 0.2))
            module.running_var.copy_(1 + hashed(shape, k + 5, 0.5))
