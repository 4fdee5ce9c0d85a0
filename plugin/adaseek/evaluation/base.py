"""The seams of evaluation: what runs a workflow, what is journalled, what a run may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol  # Any: framework objects pass through unseen

from adaseek.recipe import Recipe
from adaseek.workflow import Call, Example, ModelRef, Score, Trace, Usage

if TYPE_CHECKING:
    from adaseek.evaluation.flights import SingleFlight

__all__ = [
    "CallMemo",
    "CallRecord",
    "Evaluation",
    "Evaluator",
    "Gate",
    "Metric",
    "RunContext",
    "Task",
]

Metric = Callable[[Example, Trace], "Score | float | bool"]
"""A metric over core types; adapters wrap the user's own metric into one."""


@dataclass(frozen=True)
class CallRecord:
    """The answer of one model request, as journalled: enough to answer it again for nothing.

    `outputs` are JSON values in a form private to the adapter that wrote them. `run` names the
    workflow run that made the request, and `start_s` is when, on that run's own clock: so two
    answers of one run still tell whether their requests overlapped.
    """

    outputs: Any
    usage: Usage
    duration_s: float
    model: ModelRef
    run: str = ""
    start_s: float = 0.0


class CallMemo(Protocol):
    """Answers a model request that this run has already paid for (thread-safe).

    The key is a hash of everything that determines the answer: model, messages, parameters and,
    at a temperature above zero, the replicate. So a workflow whose first steps have the settings
    and inputs of a journalled run takes those steps' answers from the journal.
    """

    def get(self, key: str) -> CallRecord | None: ...

    def put(self, key: str, record: CallRecord) -> None: ...


class Gate(Protocol):
    """Limits how many real model requests an endpoint gets at once (thread-safe).

    An adapter wraps each request that is not answered from memo or cache, and lets the exception
    of a refused request (HTTP 429 and alike) pass through, so that the other threads back off.
    """

    def slot(self, endpoint: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class RunContext:
    """What one workflow run may use. Adapters get it; nothing in it is shared mutable state
    but the memo, its flights and the gate.

    Attributes:
        models: model key (`ModelRef.key`) -> the framework's model object.
        rewards: name -> reward function of the user, for `best_of` ensembles.
        replicate: index of the repetition; a distinct rollout at temperature above zero.
        memo: answers of earlier requests, or None to call the model every time.
        flights: makes equal requests of several threads one: an adapter that enters
            `flights.answer(memo, key)` around each request never pays for one twice. None: each
            thread asks for itself.
        use_cache: whether the framework's own response cache may answer.
        timeout_s: longest time for the run, or None.
        price: turns the usage of one call into USD, None if unknown.
        gate: to be entered around each real model request, or None for no limit.
    """

    models: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, Any] = field(default_factory=dict)
    replicate: int = 0
    memo: CallMemo | None = None
    flights: SingleFlight | None = None
    use_cache: bool = False
    timeout_s: float | None = None
    price: Callable[[ModelRef, Usage, float], float | None] | None = None
    gate: Gate | None = None


@dataclass(frozen=True)
class Task:
    """One workflow run to do: a recipe, with the example's own demos left out, on an example."""

    recipe: Recipe
    example: Example
    replicate: int = 0

    @property
    def key(self) -> str:
        """Identity of the run: the same key is never paid twice."""
        return f"{self.recipe.fingerprint}/{self.example.id}/{self.replicate}"


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one workflow run, as journalled.

    Attributes:
        score: the metric's verdict; None if the run failed.
        usage: tokens, requests and money of the run, as if nothing had been cached.
        paid: what this run really cost now: calls answered from memo or cache left out.
        latency_s: length of the critical path from uncached durations, None if unknown.
        error: text of the failure.
        replayed: taken from the journal, not run now.
    """

    task_key: str
    score: Score | None
    usage: Usage
    paid: Usage
    latency_s: float | None = None
    error: str | None = None
    error_kind: str | None = None
    calls: tuple[Call, ...] = ()
    replayed: bool = False


class Evaluator(Protocol):
    """Runs tasks and returns one evaluation per task, in the order of the tasks."""

    def __call__(self, tasks: Sequence[Task]) -> Sequence[Evaluation]: ...
