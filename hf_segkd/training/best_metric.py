"""`MetricNames`: what an evaluation logs, and whether the best checkpoint can be chosen by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from hf_segkd.evaluation.class_scores import class_keys
from hf_segkd.evaluation.reports import METRICS
from hf_segkd.suggestions import did_you_mean
from hf_segkd.training.arguments import DistillationArguments

SHOWN = 12  # names that a message lists


def gives_scores(callbacks: Sequence[TrainerCallback]) -> bool:
    """Whether one of the user's own callbacks is called with the scores of an evaluation, and may add to them."""
    kinds = [callback if isinstance(callback, type) else type(callback) for callback in callbacks]
    own = [kind for kind in kinds if not kind.__module__.startswith(("transformers.", "hf_segkd."))]
    return any(kind.on_evaluate is not TrainerCallback.on_evaluate for kind in own)


class MetricNames:
    """Names of the scores of a run's evaluations.

    Args:
        args: Arguments of the run: `metric_for_best_model` and `max_logged_classes`.
        id2label: The student's classes.
        eval_dataset: The trainer's: a data set, a dict of data sets, or None.

    Attributes:
        logged: Class id -> key of its IoU, of the classes that are logged: all up to `max_logged_classes`, else only
            the one that the best checkpoint is chosen by.
    """

    def __init__(self, args: DistillationArguments, id2label: Mapping[int, str], eval_dataset: Any) -> None:
        self.greater_is_better = args.greater_is_better
        self.wanted = args.metric_for_best_model
        keys = class_keys(id2label)
        prefixes = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else [""]
        self.of_one_set = ("loss", *METRICS, *keys)
        self.all = [prefix + name for prefix in prefixes for name in self.of_one_set]
        all_classes = len(keys) <= args.max_logged_classes
        wanted = {f"{prefix}{key}": key for prefix in prefixes for key in keys}.get(self._plain(self.wanted))
        self.logged = {index: key for index, key in enumerate(keys) if all_classes or key == wanted}
        self._of_a_class = wanted is not None

    def check(self, may_get_sets: bool = False) -> None:
        """Refuse a `metric_for_best_model` that no evaluation gives, or that is taken the wrong way round.

        Args:
            may_get_sets: Whether the trainer may still be given several evaluation sets, of names not known yet.

        Raises:
            ValueError: If it is not one of the names.
        """
        if self.wanted is None:
            return
        plain = self._plain(self.wanted)
        of_a_set = plain.endswith(tuple(f"_{name}" for name in self.of_one_set))
        if plain not in self.all and not (may_get_sets and of_a_set):
            more = f" and {len(self.all) - SHOWN} more" if len(self.all) > SHOWN else ""
            raise ValueError(
                f"metric_for_best_model is {self.wanted!r}, and evaluations of this run give no such score."
                f"{did_you_mean(plain, self.all)} There are {', '.join(self.all[:SHOWN])}{more}: of each evaluation "
                "set under its name, where there are several, and of each class iou_NAME. A score of your own comes "
                "from the on_evaluate of one of callbacks, or a subclass's evaluate."
            )
        if self._of_a_class and self.greater_is_better is False:
            raise ValueError(
                f"metric_for_best_model {self.wanted!r} is the IoU of a class, of which more is better, and "
                "greater_is_better is False (Trainer's default for names that end in loss): set it to True."
            )

    def require(self, metrics: Mapping[str, float], prefix: str) -> None:
        """Stop a run whose evaluation did not give the score that the best checkpoint is chosen by.

        Args:
            metrics: Scores of an evaluation.
            prefix: What their names begin with, without the last underscore.

        Raises:
            ValueError: If it is a score of this evaluation, and not there.
        """
        key = None if self.wanted is None else f"eval_{self._plain(self.wanted)}"
        if key in {f"{prefix}_{name}" for name in self.of_one_set} - metrics.keys():
            raise ValueError(
                f"metric_for_best_model is {self.wanted!r}, and this evaluation has no such score: no labelled pixel "
                "of the validation images is of the class, or predicted as it (with prediction_loss_only there is "
                f"only the loss). It has {', '.join(metrics)}. Choose another, such as mean_iou, or images that show "
                "the class."
            )

    @staticmethod
    def _plain(name: str | None) -> str | None:
        return None if name is None else name.removeprefix("eval_")
