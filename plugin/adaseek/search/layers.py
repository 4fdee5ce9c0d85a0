"""Which layers to search, and how much each may spend, from the total budget.

Source: the AdaSeek search of Cognify (arXiv 2502.08056): cogs are organised in layers by the
user's total budget, and the budget is split over the layers by their complexity. The formulas
are our reconstruction: a layer of C_l dimensions is expected to need C_l^alpha trials, a layering
E_L = prod_l C_l^alpha; the deepest layering that the budget covers is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adaseek.errors import require
from adaseek.search.base import Dimension, Space

__all__ = ["SMALL_SPACE", "LayerPlan", "plan_layers"]

SMALL_SPACE = 8
"""Configs per affordable full trial up to which layers are not worth their arms."""

GROUPINGS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("structure", "step", "weight"),),
    (("structure",), ("step", "weight")),
    (("structure",), ("step",), ("weight",)),
)


@dataclass(frozen=True)
class LayerPlan:
    """Layers, outermost first.

    Attributes:
        families: the families of dimensions searched in each layer.
        complexities: tunable dimensions of each layer that one config can have at most, C_l.
        budgets: trials of each layer per trial of the next outer one; their product is at most
            the number of leaf trials that the budget covers.
        expected: E_L, the leaf trials that this layering is expected to need.
    """

    families: tuple[tuple[str, ...], ...]
    complexities: tuple[int, ...]
    budgets: tuple[int, ...]
    expected: float

    @property
    def num_layers(self) -> int:
        return len(self.families)

    def dimensions(self, layer: int, space: Space) -> tuple[Dimension, ...]:
        """Returns the dimensions of `space` that layer number `layer` searches."""
        return tuple(d for d in space.dimensions if d.family in self.families[layer])


def plan_layers(space: Space, num_trials: int, *, alpha: float = 1.0) -> LayerPlan:
    """Returns the deepest layering whose expected size `num_trials` covers.

    A layering is considered only if each of its layers has at least two configs and its expected
    size grows over the one before (a structure layer of one dimension adds nothing). Below the
    flat layering's expected size the search is flat; so it is in a space of at most
    `SMALL_SPACE` configs per trial, which one layer covers well enough by itself.

    Args:
        num_trials: leaf trials that the budget covers, at least 1.
        alpha: control exponent of the complexity, in [1, 1.5].

    Raises:
        ConfigurationError: if `alpha` or `num_trials` is out of range.
    """
    require(1.0 <= alpha <= 1.5, "alpha", alpha, "must be between 1 and 1.5")
    require(num_trials >= 1, "num_trials", num_trials, "must be at least 1")
    best = _layering(space, GROUPINGS[0], alpha)
    is_small = space.size() <= SMALL_SPACE * num_trials
    for grouping in () if is_small else GROUPINGS[1:]:
        candidate = _layering(space, grouping, alpha)
        if candidate is None or best is None:
            continue
        deeper = len(candidate[0]) > len(best[0]) and candidate[2] > best[2]
        if deeper and candidate[2] <= num_trials:
            best = candidate
    if best is None:
        return LayerPlan((GROUPINGS[0][0],), (0,), (num_trials,), 1.0)
    families, complexities, expected = best
    budgets = split_budget(complexities, num_trials, alpha=alpha)
    return LayerPlan(families, complexities, budgets, expected)


def split_budget(
    complexities: Sequence[int], num_trials: int, *, alpha: float = 1.0
) -> tuple[int, ...]:
    """Returns trials per layer in proportion to C_l^alpha, their product at most `num_trials`.

    With t_l = C_l^alpha, b_l = s * t_l where s^L = num_trials / prod t_l. No layer gets less than
    two trials while that fits (one trial is no search); what rounding leaves goes to the
    innermost layer.
    """
    sizes = [max(c, 1) ** alpha for c in complexities]
    scale = (num_trials / math.prod(sizes)) ** (1 / len(sizes))
    floor = 2 if num_trials >= 2 ** len(sizes) else 1
    budgets = [max(floor, math.floor(scale * size + 1e-9)) for size in sizes[:-1]]
    while budgets and math.prod(budgets) * floor > num_trials:
        largest = budgets.index(max(budgets))
        budgets[largest] -= 1
    return (*budgets, max(1, num_trials // math.prod(budgets)))


def _layering(
    space: Space, grouping: Sequence[Sequence[str]], alpha: float
) -> tuple[tuple[tuple[str, ...], ...], tuple[int, ...], float] | None:
    """Returns families, complexities and E_L of one grouping without empty layers, or None."""
    families: list[tuple[str, ...]] = []
    complexities: list[int] = []
    for group in grouping:
        num_tunable = _most_active(space, group, None, "")
        if num_tunable:
            families.append(tuple(group))
            complexities.append(num_tunable)
    if not families:
        return None
    return tuple(families), tuple(complexities), math.prod(c**alpha for c in complexities)


def _most_active(space: Space, families: Sequence[str], parent: Dimension | None, key: str) -> int:
    """Returns how many tunable dimensions of `families` are active at most under a parent's option.

    A step and the copies that stand in for it are never active together and count once; what the
    original leaves inactive counts as well.
    """
    name = None if parent is None else parent.name
    total = 0
    for dimension in space.dimensions:
        if dimension.parent == name and (parent is None or key in dimension.parent_options):
            keys = space.choices(dimension.name)
            total += dimension.family in families and len(keys) >= 2
            total += max((_most_active(space, families, dimension, k) for k in keys), default=0)
    return total
