"""`check_refused`: refuses fields of `TrainingArguments` that would be ignored, or break what this package promises."""

from __future__ import annotations

from typing import Any, NamedTuple

_CASTS = "evaluation would convert the student itself to 16 bits, which is saved then. Set bf16 or fp16"
_ONE_MATRIX = "an evaluation keeps a confusion matrix of each image, and no inputs or logits"
_WORDS = "it is of token sequences, and images have none"


class Refusal(NamedTuple):
    """A field whose other values are refused.

    Attributes:
        taken: The values that are taken.
        reason: Why no other, and what to do.
    """

    taken: tuple[Any, ...]
    reason: str


# fsdp, fsdp_config, deepspeed and parallelism_config are refused earlier, by `refuse_sharding`: TrainingArguments acts
# on them.
REFUSED: dict[str, Refusal] = {
    "remove_unused_columns": Refusal((False,), "images are augmented inside the data set, which has other columns"),
    "batch_eval_metrics": Refusal((True,), f"{_ONE_MATRIX}. Leave it out"),
    "include_for_metrics": Refusal(([], None), f"{_ONE_MATRIX}. Leave it out"),
    "eval_do_concat_batches": Refusal((True,), f"{_ONE_MATRIX}. Leave it out"),
    "eval_accumulation_steps": Refusal((None,), f"{_ONE_MATRIX}, so nothing piles up on the device. Leave it out"),
    "eval_use_gather_object": Refusal((False,), f"{_ONE_MATRIX}, which is a tensor. Leave it out"),
    "label_names": Refusal((None, ["labels"]), "the labels of an image are called labels"),
    "fp16_full_eval": Refusal((False,), _CASTS),
    "bf16_full_eval": Refusal((False,), _CASTS),
    "enable_jit_checkpoint": Refusal(
        (False,),
        "it saves within a step, which can't be resumed exactly. Leave it out: SIGTERM is answered with a checkpoint "
        "anyway",
    ),
    "neftune_noise_alpha": Refusal((None,), "it is noise on the embeddings of words, which these networks don't have"),
    "use_liger_kernel": Refusal((False,), "its kernels are those of language models"),
    "liger_kernel_config": Refusal((None,), "its kernels are those of language models"),
    "use_cache": Refusal((False,), "a cache is of networks that write a text word by word"),
    "include_num_input_tokens_seen": Refusal(("no", False), _WORDS),
    "length_column_name": Refusal(("length",), _WORDS),
    "train_sampling_strategy": Refusal(
        ("random", "sequential"), f"{_WORDS}: crops have one size. Take random or sequential"
    ),
    "optim_target_modules": Refusal(
        (None,), "GaLore and APOLLO choose layers by it, and the three rates of backbone, head and connectors need all"
    ),
}
# Optimizers that hold the network itself, or build groups of their own.
OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo")


def check_refused(args: Any) -> None:
    """Refuse them.

    Args:
        args: Training arguments, after the `__post_init__` of `TrainingArguments`.

    Raises:
        ValueError: If one has a value that is not taken.
    """
    for name, (taken, reason) in REFUSED.items():
        value = getattr(args, name, taken[0])  # not every transformers has each
        if value not in taken:
            raise ValueError(f"{name} is {_plain(value)!r} and must be {taken[0]!r}: {reason}.")
    optimizer = _plain(args.optim)
    if optimizer.startswith(OPTIMIZERS):
        raise ValueError(
            f"optim is {optimizer!r}, which builds its own groups of parameters: backbone, head and connectors would "
            "have one rate. Take another, such as sgd or adamw_torch."
        )
    if "tpu_metrics_debug" in [_plain(option) for option in args.debug]:
        raise ValueError("debug is tpu_metrics_debug, and training was never tried on a TPU. Leave it out.")


def _plain(value: Any) -> Any:
    """The word of an enum's member; other values as they are."""
    return getattr(value, "value", value)
