"""The original program against the recommended one, as the terminal and the report show it."""

from __future__ import annotations

from dataclasses import dataclass

from adaseek._units import Reading, reading
from adaseek.result import Estimate, Heldout, TuningResult

__all__ = ["Comparison", "compare", "compare_heldout"]


@dataclass(frozen=True)
class Comparison:
    """One objective of both programs, measured on the same kind of examples.

    Attributes:
        source: `validation` or `training`: where both estimates come from.
        difference: paired difference (recommended - original) on validation examples, or None
            if it was not measured.
    """

    objective: str
    original: Estimate | None
    recommended: Estimate | None
    source: str
    difference: Estimate | None = None

    @property
    def change(self) -> float | None:
        """The difference relative to the original, None if it is of other runs than the means.

        Latency is timed alone on fewer examples than the difference is measured on.
        """
        old, difference = self.original, self.difference
        if old is None or difference is None or old.mean == 0 or old.num != difference.num:
            return None
        return difference.mean / abs(old.mean)

    @property
    def reading(self) -> Reading | None:
        """What the difference says, None if there is none."""
        return None if self.difference is None else reading(self.objective, self.difference)


def compare(result: TuningResult) -> tuple[Comparison, ...]:
    """Returns one comparison per objective.

    Validation estimates are used only if both programs have one: a validated mean and a
    training mean of different examples do not compare.
    """
    return tuple(_compare(result, objective) for objective in result.objectives)


def compare_heldout(held: Heldout) -> tuple[Comparison, ...]:
    """Returns one comparison per objective of a program and a recipe on the same examples."""
    return tuple(
        Comparison(o, e, held.tuned.get(o), "held-out", held.difference.get(o))
        for o, e in held.original.items()
    )


def _compare(result: TuningResult, objective: str) -> Comparison:
    old, new = result.original, result.recommended
    validated = objective in old.validation and objective in new.validation
    is_same = old.name == new.name
    before, after = (old.validation, new.validation) if validated else (old.train, new.train)
    return Comparison(
        objective=objective,
        original=before.get(objective),
        recommended=after.get(objective),
        source="validation" if validated else "training",
        difference=None if is_same else result.improvement.get(objective),
    )
