"""What a run tells its listeners: frozen values, sent in one order that the seed fixes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, overload  # Any: JSON values

__all__ = [
    "ArmHalved",
    "Event",
    "EventLog",
    "OptionsAdded",
    "Phase",
    "PhaseStarted",
    "Progress",
    "RunEnded",
    "RunStarted",
    "TrialEnded",
    "TrialStarted",
]

Phase = Literal["check", "baseline", "search", "validation", "latency", "done"]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The plan of a run, known before anything is spent.

    `layers` holds the names of each layer's dimensions, outermost first; `layer_budgets` the
    trials per layer, whose product is the number of planned leaf trials. Of `budget`, `num_timed`
    workflow runs are made one at a time, to time them.
    """

    budget: int
    layers: tuple[tuple[str, ...], ...]
    layer_budgets: tuple[int, ...]
    objectives: tuple[str, ...]
    num_train: int
    num_val: int
    num_timed: int = 0


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A phase of the run begins; `num_runs` is the most workflow runs that it may use."""

    phase: Phase
    num_runs: int


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """A config is about to be evaluated. `arm` is the path of outer trials that it belongs to."""

    trial: int
    layer: int
    arm: tuple[int, ...]
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TrialEnded:
    """A trial is done: its mean objectives over `num_examples` examples (None: unknown).

    `again`: it had ended before, was taken up again, and ends with more examples.
    """

    trial: int
    layer: int
    arm: tuple[int, ...]
    config: Mapping[str, str]
    quality: float | None
    cost_usd: float | None
    latency_s: float | None
    num_examples: int
    state: Literal["complete", "eliminated", "infeasible", "duplicate", "failed"]
    again: bool = False


@dataclass(frozen=True, slots=True)
class ArmHalved:
    """A rung of successive halving is done: `kept` of `arms` go on with `budget` trials each."""

    layer: int
    rung: int
    arms: tuple[int, ...]
    kept: tuple[int, ...]
    budget: int


@dataclass(frozen=True, slots=True)
class OptionsAdded:
    """A dynamic cog added options to a dimension."""

    dimension: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Workflow runs finished so far, how many of them came from the journal, and money paid."""

    num_runs: int
    num_replayed: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over. `reason`: `budget`, `converged`, or the interruption that ended it."""

    reason: str
    num_runs: int
    cost_usd: float | None
    notes: tuple[str, ...] = field(default_factory=tuple)


Event = (
    RunStarted
    | PhaseStarted
    | TrialStarted
    | TrialEnded
    | ArmHalved
    | OptionsAdded
    | Progress
    | RunEnded
)


class EventLog(Sequence[Mapping[str, Any]]):
    """The events of a run as JSON values, in order, each made only when it is looked at.

    A long run has tens of thousands of events; as JSON values they take ten times the memory.
    An event's fields come with `type`, its class, and `num_runs_so_far`, the workflow runs that
    had ended before it.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Event, int]] = []

    def add(self, event: Event, *, num_runs: int) -> None:
        """Appends `event`, which came after `num_runs` workflow runs."""
        self._entries.append((event, num_runs))

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        if isinstance(index, slice):
            return [_event_json(*entry) for entry in self._entries[index]]
        return _event_json(*self._entries[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Iterable) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list: it grows


def _event_json(event: Event, num_runs: int) -> Mapping[str, Any]:
    body = {"type": type(event).__name__, **asdict(event), "num_runs_so_far": num_runs}
    parsed: Mapping[str, Any] = json.loads(json.dumps(body))  # tuples become lists
    return parsed
