"""How many workflow runs each phase of a tuning run may use."""

from __future__ import annotations

from dataclasses import dataclass

from adaseek.errors import choices, require
from adaseek.search.base import Space

__all__ = ["SIZES", "BudgetPlan", "automatic_budget", "plan_budget"]

_TRIALS: dict[str, tuple[float, int]] = {
    "light": (1.5, 6),
    "medium": (4.0, 12),
    "heavy": (12.0, 30),
}
"""Size -> trials per tunable dimension, and trials on top."""
_EXAMPLES: dict[str, int] = {"light": 24, "medium": 40, "heavy": 100}
"""Size -> most training examples per trial."""

SIZES = tuple(_TRIALS)
"""What `auto` may be."""

_VALIDATION_SHARE = 0.3
_TARGET_TRIALS = 16
_FEWEST_EXAMPLES = 8


@dataclass(frozen=True)
class BudgetPlan:
    """Workflow runs by phase; `total` is never exceeded.

    Attributes:
        search: runs of the baseline and the search.
        num_train: training examples that a config sees if it survives its race.
        num_finalists: configs that are validated beside the original.
        num_val: validation examples each of them sees.
        num_latency: examples on which original and finalists are timed alone, uncached.
    """

    total: int
    search: int
    num_train: int
    num_finalists: int
    num_val: int
    num_latency: int

    @property
    def validation(self) -> int:
        return (1 + self.num_finalists) * self.num_val

    @property
    def timing(self) -> int:
        return (1 + self.num_finalists) * self.num_latency


def plan_budget(budget: int, num_train: int, num_val: int, *, times_latency: bool) -> BudgetPlan:
    """Returns the split of `budget` workflow runs over the phases.

    About 30% go to validation: three finalists, or fewer if they could not see 20 examples each.
    The search gives a config as many examples as still allow about 16 full trials, and at least
    8 (or all there are).

    Raises:
        ConfigurationError: if `budget` is below the smallest that could tell two configs apart.
    """
    fewest = min(_FEWEST_EXAMPLES, num_train)
    smallest = 4 * fewest + 4
    require(
        budget >= smallest,
        "budget",
        budget,
        f"must be at least {smallest} workflow runs for {num_train} training examples",
        cure="Raise it, or use auto='light'.",
    )
    num_finalists, per_config = _validation(int(_VALIDATION_SHARE * budget), num_val)
    num_latency = min(6, num_val, budget // 48) if times_latency else 0
    search = budget - (1 + num_finalists) * (per_config + num_latency)
    examples = max(fewest, min(num_train, search // _TARGET_TRIALS))
    return BudgetPlan(budget, search, examples, num_finalists, per_config, num_latency)


def automatic_budget(
    auto: str, space: Space, num_train: int, num_val: int, *, times_latency: bool
) -> int:
    """Returns the workflow runs of `auto`: its trials grow with the number of dimensions.

    Raises:
        ConfigurationError: if `auto` is not `light`, `medium` or `heavy`.
    """
    require(auto in _TRIALS, "auto", auto, f"must be one of {choices(_TRIALS)}")
    per_dimension, extra = _TRIALS[auto]
    num_trials = round(per_dimension * len(space.original())) + extra
    search = num_trials * min(num_train, _EXAMPLES[auto])
    validation = 4 * min(num_val, 2 * _EXAMPLES[auto])
    timing = 24 if times_latency else 0
    return max(search + validation + timing, 4 * min(8, num_train) + 4)


def _validation(runs: int, num_val: int) -> tuple[int, int]:
    """Returns the number of finalists and the examples that each of them and the original see."""
    for num_finalists in (3, 2):
        per_config = min(num_val, runs // (num_finalists + 1))
        if per_config >= min(num_val, 20):
            return num_finalists, per_config
    return 1, max(1, min(num_val, runs // 2))
