"""Successive halving over arms whose budget is workflow runs.

Source: successive halving (Jamieson and Talwalkar, arXiv 1502.07943) as AdaSeek uses it for the
inner search of each outer config (Cognify, arXiv 2502.08056). We differ in two ways: the unit is
workflow runs and not inner trials, and what an arm leaves unused goes to the arms still alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adaseek.errors import require

__all__ = ["Rung", "halve", "num_rungs"]


@dataclass(frozen=True)
class Rung:
    """One rung as it happened: the arms that ran, what each was offered, who goes on."""

    index: int
    arms: tuple[int, ...]
    budget: int
    kept: tuple[int, ...]


def num_rungs(num_arms: int, eta: int) -> int:
    """Returns floor(log_eta(num_arms)) + 1: rungs until one arm is left."""
    require(eta >= 2, "eta", eta, "must be at least 2")
    rungs = 1
    while num_arms >= eta**rungs:
        rungs += 1
    return rungs


def halve(
    arms: Sequence[int],
    budget: int,
    *,
    run: Callable[[int, int], int],
    score: Callable[[int], float],
    eta: int = 2,
    listen: Callable[[Rung], None] = lambda rung: None,
) -> tuple[int, ...]:
    """Spends at most `budget` workflow runs on `arms` and returns the arms of the last rung.

    Each of the m = floor(log_eta(W)) + 1 rungs may use budget / m; its arms share that equally,
    so a survivor gets about eta times more at each rung. Of the arms of a rung,
    max(1, floor(n / eta)) go on.

    Args:
        run: (arm, budget) -> runs really used, at most the budget.
        score: how promising an arm is now, higher is better; ties go to the earlier arm.
    """
    alive = tuple(arms)
    left = budget
    total = num_rungs(len(alive), eta)
    for index in range(total):
        offered = rest = left // (total - index)
        for place, arm in enumerate(alive):
            used = run(arm, rest // (len(alive) - place))
            rest -= used
            left -= used
        last = index == total - 1
        kept = alive if last else _best(alive, max(1, len(alive) // eta), score)
        listen(Rung(index, alive, offered // len(alive), kept))
        alive = kept
    return alive


def _best(arms: Sequence[int], count: int, score: Callable[[int], float]) -> tuple[int, ...]:
    """Returns the `count` arms of the highest score, in the order of `arms`."""
    best = set(sorted(arms, key=lambda arm: -score(arm))[:count])
    return tuple(arm for arm in arms if arm in best)
