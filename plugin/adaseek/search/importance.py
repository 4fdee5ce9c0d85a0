"""How much each dimension mattered in the trials of a search."""

from __future__ import annotations

import numpy as np

from adaseek.search.base import Space
from adaseek.search.records import Archive

__all__ = ["importance"]

_RIDGE = 1.0


def importance(archive: Archive, space: Space) -> dict[str, float]:
    """Returns dimension -> share of the explained variance of the first objective.

    From a ridge regression of the trials' values on their options (main effects only, each trial
    weighted by the examples it saw): the variance of a dimension's fitted effects over the
    trials, relative to that of all dimensions. Empty with fewer than four trials; a dimension
    that was never varied has share 0.
    """
    records = archive.judged()
    if len(records) < 4:
        return {}
    values = archive.points(records)[:, 0]
    weights = np.sqrt([len(record.outcomes) for record in records])
    columns, owners = [], []
    for dimension in space.dimensions:
        for option in space.options(dimension.name):
            columns.append([r.config.get(dimension.name) == option for r in records])
            owners.append(dimension.name)
    design = np.asarray(columns, dtype=np.float64).T
    centred = design - design.mean(axis=0)
    target = np.nan_to_num(values - values.mean())
    left = (centred * weights[:, None]).T @ (centred * weights[:, None])
    right = (centred * weights[:, None]).T @ (target * weights)
    effects = np.linalg.solve(left + _RIDGE * np.eye(len(left)), right)
    fitted = centred * effects
    shares = {
        d.name: float(fitted[:, [o == d.name for o in owners]].sum(axis=1).var())
        for d in space.dimensions
    }
    total = sum(shares.values())
    return {name: share / total if total > 0 else 0.0 for name, share in shares.items()}
