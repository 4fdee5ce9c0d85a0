"""How a run went, read from its events: where the budget flowed, how the best value grew.

Pure: events in, plain data out. An event is its fields plus `type`, the name of its class
(`adaseek.events`), and `num_runs_so_far`; unknown types are skipped, so a report of a newer run
still opens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # Any: events are JSON values

import numpy as np

from adaseek._units import higher_is_better
from adaseek.result import TuningResult
from adaseek.search.pareto import front, hypervolume

__all__ = [
    "PHASES",
    "Convergence",
    "Flow",
    "Link",
    "Trial",
    "budget_flow",
    "convergence",
    "leaf_trials",
]

_MAX_ARMS = 8
_REFERENCE = 1.1
"""Corner of the hypervolume box: a tenth worse than the worst value seen of each objective."""

PHASES = {
    "check": "connection check",
    "baseline": "baseline",
    "search": "search",
    "validation": "validation",
    "latency": "latency measurement",
}
"""Phase -> its name in the report."""

_STATES = {
    "complete": "complete",
    "eliminated": "eliminated early",
    "infeasible": "outside a bound",
    "failed": "failed",
}
_ORIGINAL = "original program"
_SHARED = "repeated or unfinished"


@dataclass(frozen=True)
class Trial:
    """One ended trial of the innermost layer.

    `num_runs` is how many workflow runs the whole run had used when it ended.
    """

    number: int
    arm: tuple[int, ...]
    config: Mapping[str, str]
    values: Mapping[str, float | None]
    num_examples: int
    state: str
    num_runs: int


@dataclass(frozen=True, order=True)
class Link:
    """`num_runs` workflow runs that went from one node of the flow to the next."""

    source: str
    target: str
    num_runs: int


@dataclass(frozen=True)
class Flow:
    """The budget as a flow.

    `nodes` maps names in reading order to kinds; `arms` maps the name of an arm to the outer
    config that it stands for.
    """

    nodes: Mapping[str, str]
    links: tuple[Link, ...]
    arms: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Convergence:
    """The best values so far, after each trial that has finished.

    `quality` is the best feasible mean score; `volume` the dominated hypervolume as a share of
    the final one, empty with fewer than two known objectives.
    """

    num_runs: tuple[int, ...]
    quality: tuple[float, ...]
    volume: tuple[float, ...]


def leaf_trials(events: Iterable[Mapping[str, Any]]) -> tuple[Trial, ...]:
    """Returns the ended trials of the innermost layer in the order in which they ended."""
    events = tuple(events)
    innermost = _innermost_layer(events)
    # A trial that was taken up again ends twice: the last end counts.
    last = {
        event["trial"]: event
        for event in events
        if event.get("type") == "TrialEnded" and event["layer"] == innermost
    }
    return tuple(_trial(event) for event in last.values())


def budget_flow(result: TuningResult) -> Flow:
    """Returns how the workflow runs of `result` went from phases through arms to trial states.

    Outside the search a phase is where its runs end. Arms beyond the largest eight of a layer
    are drawn as one.
    """
    spent = result.spending.phases.items()
    phases = {PHASES.get(name, name): runs for name, runs in spent if runs > 0}
    trials = [t for t in leaf_trials(result.events) if t.state != "duplicate"]
    totals: dict[tuple[str, str], int] = defaultdict(int)
    kinds: dict[str, str] = {"budget": "budget"}
    for name, runs in phases.items():
        kinds[name] = "phase"
        totals["budget", name] += runs
    left = result.spending.budget - sum(phases.values())
    if left > 0:
        kinds["not used"] = "rest"
        totals["budget", "not used"] = left
    if "search" in phases:
        for node, kind, link, runs in _search_links(trials, phases["search"]):
            kinds.setdefault(node, kind)
            totals[link] += runs
    links = tuple(Link(*pair, runs) for pair, runs in totals.items() if runs > 0)
    return Flow(kinds, links, _arm_configs(result.events, trials))


def convergence(result: TuningResult) -> Convergence:
    """Returns how the best feasible quality and the hypervolume grew with the runs used."""
    done = [t for t in leaf_trials(result.events) if t.state == "complete"]
    quality: list[float] = []
    for trial in done:
        value = trial.values["quality"]
        best = quality[-1] if quality else float("-inf")
        quality.append(best if value is None else max(best, value))
    known = [o for o in result.objectives if any(t.values[o] is not None for t in done)]
    return Convergence(
        num_runs=tuple(trial.num_runs for trial in done),
        quality=tuple(quality) if "quality" in known else (),
        volume=_volumes(done, known) if len(known) > 1 else (),
    )


def _innermost_layer(events: Sequence[Mapping[str, Any]]) -> int:
    for event in events:
        if event.get("type") == "RunStarted":
            return max(0, len(event["layers"]) - 1)
    return max((e["layer"] for e in events if e.get("type") == "TrialEnded"), default=0)


def _trial(event: Mapping[str, Any]) -> Trial:
    return Trial(
        number=int(event["trial"]),
        arm=tuple(event["arm"]),
        config=event["config"],
        values={
            "quality": event["quality"],
            "cost": event["cost_usd"],
            "latency": event["latency_s"],
        },
        num_examples=int(event["num_examples"]),
        state=str(event["state"]),
        num_runs=int(event["num_runs_so_far"]),
    )


def _search_links(
    trials: Sequence[Trial], num_runs: int
) -> Iterable[tuple[str, str, tuple[str, str], int]]:
    """Yields a node, its kind, and a link into it with its runs, for the part under `search`."""
    names = _arm_names(trials)
    has_arms = bool(names)
    for trial in trials:
        source = "search"
        for depth in range(1, len(trial.arm) + 1):
            node = names[trial.arm[:depth]]
            yield node, "arm", (source, node), trial.num_examples
            source = node
        if trial.number == 0 and has_arms:
            yield _ORIGINAL, "arm", (source, _ORIGINAL), trial.num_examples
            source = _ORIGINAL
        state = _STATES.get(trial.state, trial.state)
        yield state, trial.state, (source, state), trial.num_examples
    rest = num_runs - sum(trial.num_examples for trial in trials)
    if rest > 0:
        yield _SHARED, "rest", ("search", _SHARED), rest


def _arm_names(trials: Sequence[Trial]) -> dict[tuple[int, ...], str]:
    """Returns a readable name per arm; the small arms of a layer share one."""
    sizes: dict[tuple[int, ...], int] = defaultdict(int)
    for trial in trials:
        for depth in range(1, len(trial.arm) + 1):
            sizes[trial.arm[:depth]] += trial.num_examples
    names: dict[tuple[int, ...], str] = {}
    for depth in sorted({len(arm) for arm in sizes}):
        arms = sorted((a for a in sizes if len(a) == depth), key=lambda a: (-sizes[a], a))
        shown = len(arms) if len(arms) <= _MAX_ARMS + 1 else _MAX_ARMS
        names |= {arm: "arm " + ".".join(map(str, arm)) for arm in arms[:shown]}
        rest = arms[shown:]
        names |= {arm: f"{len(rest)} other arms of layer {depth}" for arm in rest}
    return names


def _arm_configs(
    events: Iterable[Mapping[str, Any]], trials: Sequence[Trial]
) -> dict[str, Mapping[str, str]]:
    """Returns arm name -> the part of its trials' configs that the outer layers decided."""
    layers = next((e["layers"] for e in events if e.get("type") == "RunStarted"), ())
    configs: dict[str, Mapping[str, str]] = {}
    for trial in trials:
        for depth in range(1, len(trial.arm) + 1):
            outer = {name for layer in layers[:depth] for name in layer}
            decided = {k: v for k, v in trial.config.items() if k in outer}
            configs["arm " + ".".join(map(str, trial.arm[:depth]))] = decided
    return configs


def _volumes(trials: Sequence[Trial], objectives: Sequence[str]) -> tuple[float, ...]:
    """Returns the hypervolume after each trial, relative to the last one's."""
    points = np.array([[_minimised(trial, o) for o in objectives] for trial in trials])
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    scaled = np.nan_to_num(scaled, nan=2.0)  # unknown: outside the box, so it adds nothing
    kept, volumes = np.empty((0, len(objectives))), []
    for point in scaled:
        kept = np.vstack([kept, point])
        kept = kept[front(kept)]
        volumes.append(hypervolume(kept, [_REFERENCE] * len(objectives)))
    final = volumes[-1] or 1.0
    return tuple(volume / final for volume in volumes)


def _minimised(trial: Trial, objective: str) -> float:
    value = trial.values[objective]
    if value is None:
        return float("nan")
    return -value if higher_is_better(objective) else value
