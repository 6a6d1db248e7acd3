"""`search_weights`: chooses how much each method's terms weigh, by the validation split, in as many trials for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hf_segkd.commands.comparison_plan import BASELINE, Method, Plan
from hf_segkd.commands.live_table import LiveTable
from hf_segkd.commands.study import Run, run_all
from hf_segkd.data.files import SAME_SPLITS
from hf_segkd.evaluation.reports import ARGUMENTS_FILE, read_json, table

# What all terms of a method are multiplied by, half a power of ten apart, in the order in which more trials add them.
# The first is the weight of the method's paper or code, which no search can lose.
FACTORS = (1.0, 0.3, 3.0, 0.1, 10.0, 0.03, 30.0, 0.01, 100.0)
SEARCH_SEED = 1234


@dataclass(frozen=True)
class Search:
    """What the trials of a method came to.

    Attributes:
        method: The method with the weight that was chosen.
        scores: Factor -> mIoU on the validation split in percent, ascending by factor; None where training diverged.
    """

    method: Method
    scores: dict[float, float | None]

    @property
    def factor(self) -> float:
        """The factor with the highest score; of equal ones the one nearest to 1."""
        return best_factor(self.scores)


def factors(trials: int) -> list[float]:
    """The factors of so many trials, 1 among them, ascending.

    Example:
        >>> factors(3)
        [0.3, 1.0, 3.0]
    """
    return sorted(FACTORS[:trials])


def best_factor(scores: dict[float, float | None]) -> float:
    """The factor with the highest score, of equal ones the one nearest to 1.

    Raises:
        ValueError: If no trial has a score.
    """
    scored = [factor for factor in FACTORS if scores.get(factor) is not None]
    if not scored:
        raise ValueError(f"None of the trials with the weight times {', '.join(f'{f:g}' for f in scores)} has a score.")
    return max(scored, key=scores.__getitem__)  # the first of equal ones


def weighed(method: Method, factor: float) -> Method:
    """The method with all its terms times the factor."""
    own = method.flags.get("distillation_weight", 1.0)
    return replace(method, flags={**method.flags, "distillation_weight": own * factor})


def check_trials(trials: int, seeds: Sequence[int], test_split: str, eval_split: str) -> None:
    """Make sure that a search with so many trials says something of the runs that are compared.

    Raises:
        ValueError: If the number makes no sense, the seed of the trials is one of those that are compared, or the
            split that is scored would choose.
    """
    if trials == 0:
        return
    if not 2 <= trials <= len(FACTORS):
        raise ValueError(
            f"--weight_trials is 0 (no search) or 2 to {len(FACTORS)} trials for each method, got {trials}."
        )
    if SEARCH_SEED in seeds:
        raise ValueError(f"--seeds: {SEARCH_SEED} is the seed of the trials of weights; compare other seeds.")
    if any({test_split, eval_split} <= {*names} for names in (*SAME_SPLITS, (test_split,))):
        raise ValueError(
            f"--weight_trials chooses weights by the split {eval_split}, which is also the one that is scored. Score "
            "another one (--test_split test), or choose by another one (--eval_split)."
        )


def refuse_other_weights(runs: Sequence[Run], search: Search) -> None:
    """Make sure that runs which were done before have the weight that the trials choose.

    Raises:
        ValueError: If one has another.
    """
    for run in runs:
        used, chosen = (
            flags.get("distillation_weight", 1.0)
            for flags in (read_json(run.output_dir / ARGUMENTS_FILE), search.method.flags)
        )
        if used != chosen:
            raise ValueError(
                f"{run.output_dir} was trained with the distillation_weight {used:g}, and the trials now choose "
                f"{chosen:g}: were they made anew? Delete that folder, or bring the former trials back."
            )


def search_weights(plan: Plan, methods: Sequence[Method], steps: dict[str, int | None], jobs: int) -> dict[str, Search]:
    """Train each method once with each factor, and choose by the validation split alone.

    A run whose loss or gradient is no longer finite counts as one without a score.

    Args:
        plan: The comparison, with the number of trials.
        methods: The methods to search for; the student alone has no such weight and is passed over.
        steps: Steps of each method by its name, those of its runs; None for those of the recipe.
        jobs: Runs at a time.

    Returns:
        What the trials came to, by the method's name.

    Raises:
        ValueError: If a run fails for another reason, or none of a method has a score.
    """
    methods = [method for method in methods if method.name != BASELINE and plan.weight_trials]
    grid = factors(plan.weight_trials)
    runs = {
        method.name: {f: plan.weight_run(weighed(method, f), f, SEARCH_SEED, steps[method.name]) for f in grid}
        for method in methods
    }
    if not runs:
        return {}
    print(f"\nWeights: each method with its weight times {', '.join(f'{factor:g}' for factor in grid)}.")
    rows = [(name, [run.output_dir.name for run in of_factor.values()]) for name, of_factor in runs.items()]
    live = LiveTable(rows, [f"x {factor:g}" for factor in grid])
    run_all([run for of_factor in runs.values() for run in of_factor.values()], jobs, live)
    live.leave()
    found = {}
    for method in methods:
        scores = {
            f: None if run.has_diverged else _percent(run.report().mean_iou) for f, run in runs[method.name].items()
        }
        found[method.name] = Search(weighed(method, best_factor(scores)), scores)
    return found


def in_words(searches: Sequence[Search], split: str) -> str:
    """How the weights were chosen, and a table of the trials."""
    grid = list(searches[0].scores)
    rows = [
        [
            search.method.name,
            *("diverged" if s is None else f"{s:.2f}" for s in search.scores.values()),
            f"{search.factor:g}",
        ]
        for search in searches
    ]
    ends = [search.method.name for search in searches if search.factor in (grid[0], grid[-1])]
    more = f" At the end of the grid, where more trials might go on: {', '.join(ends)}." if ends else ""
    trials = table(["", *(f"x {factor:g}" for factor in grid), "chosen"], rows)
    return (
        f"Weights were searched in {len(grid)} trials for each method: all its terms times a factor, and a training "
        f"like those that are compared, with the seed {SEARCH_SEED}. The highest mIoU on the split {split}, below in "
        f"%, chose; the split that is scored was not looked at.{more}\n\n{trials}"
    )


def _percent(score: float | None) -> float | None:
    return None if score is None else 100 * score
