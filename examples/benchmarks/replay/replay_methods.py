"""Search methods under one roof: each spends a budget of workflow runs on a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from adaseek.search.adaseek import AdaSeek, SearchSettings
from adaseek.search.base import Config, Constraint, Evaluate, LeafRun, Objective, Space
from adaseek.search.proposals import Proposals
from adaseek.search.records import Archive, Record
from adaseek.search.sampler import CategoricalTPESampler
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage

__all__ = ["METHODS", "Found", "Method", "Problem"]


@dataclass(frozen=True)
class Problem:
    """What a method is given.

    Attributes:
        budget: workflow runs, those of the original program included.
        num_examples: examples that a fully tried config is run on.
    """

    space: Space
    evaluate: Evaluate
    budget: int
    num_examples: int
    labels: Sequence[str]
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    seed: int


@dataclass(frozen=True)
class Found:
    """What a method observed, and the config it would recommend for its quality.

    Fully tried configs are the `complete` records of `archive`.
    """

    archive: Archive
    chosen: Record


Method = Callable[[Problem], Found]


def adaseek(problem: Problem, **changes: Any) -> Found:
    """AdaSeek with its defaults, or with `changes` of its settings. It picks by its beliefs."""
    settings = SearchSettings(
        problem.budget,
        problem.num_examples,
        problem.objectives,
        problem.constraints,
        **changes,
    )
    search = AdaSeek(
        problem.space, settings, problem.evaluate, labels=problem.labels, seed=problem.seed
    )
    return Found(search.run(), search.beliefs.best())


def best_observed(archive: Archive) -> Record:
    """Returns the complete, feasible record of best observed quality, the cheapest of equals."""
    usable = [r for r in archive.records if r.state == "complete" and archive.is_feasible(r)]
    mean = archive.mean
    return max(usable, key=lambda r: (mean(r, "quality"), -mean(r, "cost"), -r.number))


def flat(problem: Problem, sampler: BaseSampler) -> Found:
    """One level, every config on all examples. A config proposed again costs nothing."""
    archive = Archive(problem.objectives, problem.constraints)
    proposals = Proposals(
        "flat",
        lambda: problem.space,
        sampler=sampler,
        storage=InMemoryStorage(),
        objectives=problem.objectives,
        identity=_identity,
        seed=[problem.seed, 1],
    )
    proposal = proposals.put(problem.space.original())
    seen: set[frozenset[tuple[str, str]]] = set()
    for _ in range(problem.budget // problem.num_examples):
        seen.add(_identity(proposal.config))
        runs = [LeafRun(proposal.config, e) for e in range(problem.num_examples)]
        record = Record(len(archive.records), proposal.config)
        record.outcomes.extend(problem.evaluate(runs))
        record.state = "complete"
        archive.records.append(record)
        proposals.tell(
            proposal,
            [archive.mean(record, o) for o in problem.objectives],
            violation=archive.violation(record),
            num_examples=problem.num_examples,
        )
        found = proposals.ask({}, 1, taken=seen)
        if not found:
            break
        proposal = found[0]
    return Found(archive, best_observed(archive))


def tpe(problem: Problem) -> Found:
    """Optuna's own TPE: multivariate, conditional groups, told of broken constraints."""
    sampler = optuna.samplers.TPESampler(
        multivariate=True,
        group=True,
        seed=problem.seed,
        constraints_func=_violation if problem.constraints else None,
    )
    return flat(problem, sampler)


def own_tpe(problem: Problem) -> Found:
    """AdaSeek's sampler in a flat search without racing."""
    return flat(problem, CategoricalTPESampler(lambda: problem.space, seed=problem.seed))


def random(problem: Problem) -> Found:
    """Distinct random configs."""
    return flat(problem, optuna.samplers.RandomSampler(seed=problem.seed))


METHODS: Mapping[str, Method] = {
    "flat TPE": tpe,
    "AdaSeek": adaseek,
    "AdaSeek, one layer": lambda problem: adaseek(problem, num_layers=1),
    "one layer, no halving": lambda problem: adaseek(
        problem, num_layers=1, halving=False, reserve=0.0
    ),
    "flat, our sampler": own_tpe,
    "random": random,
}
"""The first one is what the others are compared with."""


def _identity(config: Config) -> frozenset[tuple[str, str]]:
    return frozenset(config.items())


def _violation(trial: optuna.trial.FrozenTrial) -> Sequence[float]:
    return (float(trial.user_attrs.get("adaseek:violation", np.inf)),)
