"""`refuse_options`, `require_kinds` ...: arguments that `DistillationTrainer` does not take, or not together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hf_segkd.suggestions import did_you_mean
from hf_segkd.training.arguments import DistillationArguments

NOT_TAKEN = {
    "compute_metrics": "an evaluation adds up confusion matrices, so a function would get no logits. mean_iou, "
    "mean_accuracy, overall_accuracy and the IoU of each class are logged; trainer.confusion_matrix has all counts "
    "for others, in a callback's on_evaluate or a subclass's evaluate",
    "preprocess_logits_for_metrics": "an evaluation adds up confusion matrices and keeps no logits. A student whose "
    "logits are to be changed before they are scored does so in its forward",
    "compute_loss_func": "it sees the student's output and the labels, and no teacher. Choose the loss on the labels "
    "with args.label_loss, pass a loss on the teacher's features as loss, or override compute_loss in a subclass",
    "data_collator": "crops of one size are stacked, and images of an evaluation may have any sizes. Prepare images "
    "in the data set, or override get_train_dataloader in a subclass",
}


def refuse_options(positional: Sequence[Any], given: dict[str, Any], known: Iterable[str]) -> None:
    """Refuse them by name.

    Args:
        positional: What was given by position, beyond the arguments that may be.
        given: What was given by name, and is no argument of `DistillationTrainer`.
        known: Names of its arguments.

    Raises:
        TypeError: If something was given by position, or there is no such argument.
        ValueError: If an argument of `Trainer` is not taken here; the message says what serves instead.
    """
    if positional:
        raise TypeError(
            f"DistillationTrainer takes model and args by position, and {len(positional)} more were given. Trainer's "
            "order is not its own: name them, such as train_dataset=..., eval_dataset=..., teacher=..."
        )
    for name, value in given.items():
        if name not in NOT_TAKEN:
            raise TypeError(f"DistillationTrainer has no argument {name!r}.{did_you_mean(name, known)}")
        if value is not None:
            raise ValueError(f"{name} is not taken: {NOT_TAKEN[name]}.")


def require_kinds(args: Any, callbacks: Any) -> None:
    """Make sure that `args` are ours, and `callbacks` a list of callbacks.

    Raises:
        ValueError: If not.
    """
    if not isinstance(args, DistillationArguments):
        raise ValueError(
            f"args is a {type(args).__name__}, and must be DistillationArguments, which take the fields of "
            "TrainingArguments and those of distillation."
        )
    if callbacks is not None and not isinstance(callbacks, Sequence):
        raise ValueError(f"callbacks is a {type(callbacks).__name__}, and must be a list of callbacks.")
    if wrong := [callback for callback in callbacks or () if not hasattr(callback, "on_evaluate")]:
        raise ValueError(f"callbacks holds a {type(wrong[0]).__name__}, and must be of TrainerCallback: {wrong[0]!r}.")


def require_set(name: str, sets: Any) -> None:
    """Make sure that there is an evaluation set of this name.

    Raises:
        ValueError: If the trainer's `eval_dataset` is no dict that has it.
    """
    if not isinstance(sets, dict):
        raise ValueError(f"{name!r} names one of several evaluation sets, and eval_dataset of the trainer is no dict.")
    if name not in sets:
        raise ValueError(
            f"There is no evaluation set {name!r}.{did_you_mean(name, sets)} There are: {', '.join(sets)}."
        )


def refuse_unclear_start(
    model: Any, model_init: Any, optimizers: Sequence[Any], optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None
) -> None:
    """Refuse two students or none, and two optimizers or rates.

    Raises:
        ValueError: If there are.
    """
    if (model is None) == (model_init is None):
        raise ValueError(
            "Pass either model or model_init, a function that makes a student for each run: "
            f"{'neither' if model is None else 'both'} came."
        )
    given = any(part is not None for part in optimizers)
    if given and model_init is not None:
        raise ValueError(
            "optimizers hold the parameters of one student, and model_init makes a new one for each run. Set optim in "
            "args, or pass optimizer_cls_and_kwargs."
        )
    if optimizer_cls_and_kwargs is None:
        return
    if given:
        raise ValueError("Pass either optimizers or optimizer_cls_and_kwargs; both came.")
    if twice := [name for name in ("lr", "weight_decay") if name in optimizer_cls_and_kwargs[1]]:
        raise ValueError(
            f"optimizer_cls_and_kwargs holds {' and '.join(twice)}, and backbone, head and connectors have rates of "
            "their own: set learning_rate, head_lr_multiplier, connector_lr_multiplier and weight_decay in args."
        )
