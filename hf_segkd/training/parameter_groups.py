"""Which parameters the optimizer holds, and with which learning rates."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from hf_segkd.training.arguments import DistillationArguments
from hf_segkd.training.distiller import Distiller


def parameter_groups(distiller: Distiller, args: DistillationArguments) -> list[dict[str, Any]]:
    """Parameters with the learning rates of backbone, head and connectors, and one weight decay for all.

    Heads and connectors learn at 10 times the backbone's rate in the papers' code; weight decay is on biases and
    batch norms too.
    """
    backbone_prefix = f"student.{distiller.network.base_model_prefix}."
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in distiller.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("loss."):
            groups[args.connector_lr_multiplier].append(parameter)
        elif name.startswith(backbone_prefix):
            groups[1.0].append(parameter)
        else:
            groups[args.head_lr_multiplier].append(parameter)
    return [
        {"params": parameters, "lr": multiplier * args.scaled_learning_rate, "weight_decay": args.weight_decay}
        for multiplier, parameters in groups.items()
    ]


def require_all_parameters(optimizer: torch.optim.Optimizer, distiller: Distiller) -> None:
    """Refuse an optimizer that was built elsewhere and would leave a part of the run untrained.

    Raises:
        ValueError: If it does not hold all parameters that are to learn.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, value in distiller.named_parameters() if value.requires_grad and id(value) not in held]
    if missing:
        raise ValueError(
            f"The optimizer that was passed does not hold {len(missing)} trainable parameters, such as {missing[0]}: "
            "they would never learn. Leave optimizers out (they are built from args), or freeze what shall not train."
        )
