"""Racing over examples: stop a config as soon as the data say that it cannot win.

Configs are compared on the same examples in one fixed order, so differences are paired. The
evidence against a config is the wealth of a gambler who bets that it is worse; the wealth is a
nonnegative martingale if it is not, so by Ville's inequality the chance that it ever reaches
1 / delta is at most delta, however often one looks. So looking after every rung costs nothing.

Source: testing by betting for bounded means, Waudby-Smith and Ramdas (arXiv 2010.09686), with a
uniform mixture over a grid of fixed bets in place of their adaptive bet: no tuning, no order
effects inside a rung.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["evidence_of_loss", "rungs", "stratified_order"]

Values = Sequence[float] | NDArray[np.float64]

_BETS = np.linspace(0.1, 0.9, 9)


def evidence_of_loss(
    scores: Values, rival: Values, *, margin: float = 0.0, span: float = 1.0
) -> float:
    """Returns the largest wealth ever reached against "`scores` are not worse than `rival`".

    The null hypothesis is mean(scores) >= mean(rival) - margin. Reject it at level delta when
    the result is at least 1 / delta, at any time.

    Args:
        scores, rival: paired scores in the fixed example order.
        margin: a loss of this size still counts as not worse, in units of the score.
        span: largest possible difference between two scores (1 for scores in [0, 1]).
    """
    if not len(scores):
        return 1.0
    losses = np.clip((np.asarray(rival) - np.asarray(scores) - margin) / (span + margin), -1, 1)
    wealth = np.cumprod(1 + _BETS[:, None] * losses[None, :], axis=1)
    return float(wealth.mean(axis=0).max())


def rungs(num_examples: int, *, first: int = 4, factor: int = 2) -> tuple[int, ...]:
    """Returns the numbers of examples after which a race is judged; the last is all of them."""
    sizes = []
    size = first
    while size < num_examples:
        sizes.append(size)
        size *= factor
    return (*sizes, num_examples)


def stratified_order(labels: Sequence[Hashable], *, seed: int) -> tuple[int, ...]:
    """Returns a fixed shuffled order of the examples in which every prefix is balanced.

    Each prefix holds every label about as often as the whole set does: an example comes at the
    place (its position inside its label + a random offset) / size of that label.
    """
    rng = np.random.default_rng([seed, 7])
    shuffled = rng.permutation(len(labels))
    groups: dict[Hashable, list[int]] = {}
    for index in shuffled:
        groups.setdefault(labels[index], []).append(int(index))
    places: list[tuple[float, int, int]] = []
    for group in groups.values():
        offset = float(rng.random())
        places.extend(
            ((position + offset) / len(group), int(np.flatnonzero(shuffled == index)[0]), index)
            for position, index in enumerate(group)
        )
    return tuple(index for _, _, index in sorted(places))
