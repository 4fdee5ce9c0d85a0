"""What a run tells its listeners: frozen values, sent in one order that the seed fixes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "ArmHalved",
    "Event",
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


@dataclass(frozen=True)
class RunStarted:
    """The plan of a run, known before anything is spent.

    `layers` holds the names of each layer's dimensions, outermost first; `layer_budgets` the
    trials per layer, whose product is the number of planned leaf trials.
    """

    budget: int
    layers: tuple[tuple[str, ...], ...]
    layer_budgets: tuple[int, ...]
    objectives: tuple[str, ...]
    num_train: int
    num_val: int


@dataclass(frozen=True)
class PhaseStarted:
    """A phase of the run begins; `num_runs` is the most workflow runs that it may use."""

    phase: Phase
    num_runs: int


@dataclass(frozen=True)
class TrialStarted:
    """A config is about to be evaluated. `arm` is the path of outer trials that it belongs to."""

    trial: int
    layer: int
    arm: tuple[int, ...]
    config: dict[str, str]


@dataclass(frozen=True)
class TrialEnded:
    """A trial is done: its mean objectives over `num_examples` examples (None: unknown).

    `again`: it had ended before, was taken up again, and ends with more examples.
    """

    trial: int
    layer: int
    arm: tuple[int, ...]
    config: dict[str, str]
    quality: float | None
    cost_usd: float | None
    latency_s: float | None
    num_examples: int
    state: Literal["complete", "eliminated", "infeasible", "duplicate", "failed"]
    again: bool = False


@dataclass(frozen=True)
class ArmHalved:
    """A rung of successive halving is done: `kept` of `arms` go on with `budget` trials each."""

    layer: int
    rung: int
    arms: tuple[int, ...]
    kept: tuple[int, ...]
    budget: int


@dataclass(frozen=True)
class OptionsAdded:
    """A dynamic cog added options to a dimension."""

    dimension: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Workflow runs finished so far, how many of them came from the journal, and money paid."""

    num_runs: int
    num_replayed: int
    cost_usd: float | None


@dataclass(frozen=True)
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
