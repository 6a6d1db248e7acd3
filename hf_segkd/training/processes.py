"""`check_supported_modes`, `synchronise_batch_norms`: checks and set-up of the processes of a run."""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import logging

from hf_segkd.losses.adversary import Adversary

logger = logging.get_logger(__name__)

# Variables by which `accelerate launch` has its processes share a network instead of copying it.
SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "A parallelism config",
}


def refuse_sharding(args: Any) -> None:
    """Refuse networks divided among processes, whether the arguments ask for it or accelerate's config or flags.

    Args:
        args: Training arguments, before or after their `__post_init__`.

    Raises:
        ValueError: If they are asked for.
    """
    wanted = [name for name in ("fsdp", "deepspeed", "parallelism_config") if getattr(args, name, None)]
    config = getattr(args, "fsdp_config", None) or {}
    if not isinstance(config, dict) or any(config.values()):  # some transformers fill it with values that are off
        wanted.append("fsdp_config")
    wanted += [name for name in SHARDED if os.environ.get(name, "false").lower() in ("true", "1", "yes")]
    if wanted:
        raise ValueError(
            f"{SHARDED.get(wanted[0], wanted[0])} is asked for (by {', '.join(wanted)}), but distillation was never "
            "tested with a network divided among processes, and refuses it: so are FSDP and DeepSpeed. Networks of "
            "this size fit into one GPU. Use plain data parallelism: accelerate launch with --multi_gpu, or with "
            "hf_segkd/accelerate_configs/multi_gpu.yaml as its --config_file."
        )


def check_supported_modes(args: Any) -> None:
    """Refuse modes in which results would be wrong or nothing would run.

    Args:
        args: Training arguments.

    Raises:
        ValueError: If one is asked for.
    """
    if checkpoints_activations(args) and args.torch_compile:
        raise ValueError(
            "gradient_checkpointing computes each block a second time, which torch_compile was never tested with: "
            "leave one of them out."
        )
    if args.fp16 and args.device.type == "cpu":
        raise ValueError("fp16 needs a GPU; on a CPU use --bf16, or neither.")
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs and Trainer would use nn.DataParallel, which loses the loss's "
            "statistics. Start one process per GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one."
        )


def checkpoints_activations(args: Any) -> bool:
    """Whether gradient checkpointing is asked for; transformers renames it on its way to version 6."""
    return bool(getattr(args, "activation_checkpointing", False) or getattr(args, "gradient_checkpointing", False))


def warn_single_process(args: Any) -> None:
    """Warn when `accelerate launch` was asked for several processes and started one.

    `accelerate launch --cpu --num_processes 2` does so silently: it sets the address where its processes would meet,
    but starts only one, without a rank.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if launched and "WORLD_SIZE" not in os.environ and args.world_size == 1:
        logger.warning(
            "accelerate launch was asked for several processes, but this is the only one: images per optimizer step "
            f"are {args.images_per_step}. On CPUs use `accelerate launch --multi_gpu --num_processes 2 ... --use_cpu`, "
            "or hf_segkd/accelerate_configs/cpu_two_processes.yaml as --config_file."
        )


def synchronise_batch_norms(module: nn.Module, args: Any) -> None:
    """Let batch norms take the statistics of all processes' images, in place; keys and values stay as they are.

    Those of a discriminator stay: the gradient penalty differentiates twice, which `SyncBatchNorm` can not.

    Args:
        module: The student and the loss.
        args: Training arguments; with one process nothing is done.

    Raises:
        ValueError: If the processes run on CPUs.
    """
    if args.world_size == 1:
        logger.warning("sync_batch_norm changes nothing in a run of one process.")
    elif args.device.type == "cpu":
        raise ValueError("sync_batch_norm needs GPUs: PyTorch has no SyncBatchNorm on CPUs. Leave it out here.")
    else:
        _convert(module)


def _convert(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        elif not isinstance(child, Adversary):
            _convert(child)
