"""What a cog is: one tuning method, offering options for one step.

A third party adds a cog with one class and the hook `adaseek_cogs`. A cog yields settings, never
framework objects, so it works in every framework.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable  # Any: examples hold the user's data

from adaseek.recipe import Recipe, Setting
from adaseek.workflow import Example, ModelRef, Score, Step, Trace, Usage, Workflow

__all__ = ["Cog", "CogContext", "Completion", "DynamicCog", "Family", "Option", "Proposer", "Run"]

Family = Literal["structure", "step", "weight"]


@dataclass(frozen=True)
class Option:
    """One value of a cog: what it sets, and the steps that it creates.

    Attributes:
        key: names the option within its cog and step, stable over runs.
        setting: what it changes at the step; an empty setting leaves the program as it is.
        members: the steps that exist only under this option (an ensemble's copies); they take the
            place of the step for every cog of the inner layers.
        extras: steps that exist only under this option beside the step (its subtasks); the cogs
            of the inner layers may tune them too.
        expected_cost: workflow cost relative to the original step, e.g. 3.0 for three copies.
        label: what reports call it; empty: its key. An added option keeps its label when the
            search gives it the key of a slot.
    """

    key: str
    setting: Setting = field(default_factory=Setting)
    members: tuple[Step, ...] = ()
    extras: tuple[Step, ...] = ()
    expected_cost: float = 1.0
    label: str = ""


@dataclass(frozen=True)
class Completion:
    """A language model's answer to a prompt of the tuner itself."""

    text: str
    usage: Usage = field(default_factory=Usage)


class Proposer(Protocol):
    """Asks the proposal model; every answer is journalled, so a resumed run pays none twice."""

    def __call__(self, prompt: str, *, seed: int, max_tokens: int = 512) -> Completion: ...


@dataclass(frozen=True)
class Run:
    """One finished workflow run, as evidence for a dynamic cog.

    Attributes:
        recipe: what ran (the demos of `example` already left out).
        derived: what cogs have worked out from this run, under keys that begin with the cog's
            name: a cog is asked after each chunk of configs, mostly about runs it has seen.
    """

    recipe: Recipe
    example: Example
    trace: Trace
    score: Score
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class CogContext:
    """What a cog may look at when it offers options.

    Attributes:
        workflow: the user's program as translated.
        models: the model menu of the user.
        train: the training examples; a cog must never look at validation examples.
        proposer: the proposal model, or None if the user gave none.
        seed: the run's seed.
        rewards: names of the reward functions that `best_of` may use.
        derived: what cogs have worked out from the rest, under keys that begin with the cog's
            name; as long-lived as the tuning run.
    """

    workflow: Workflow
    models: tuple[ModelRef, ...] = ()
    train: Sequence[Example] = ()
    proposer: Proposer | None = None
    seed: int = 0
    rewards: Mapping[str, Any] = field(default_factory=dict)
    derived: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)


@runtime_checkable
class Cog(Protocol):
    """One tuning method. Implementations are immutable and may be shared between runs."""

    @property
    def name(self) -> str:
        """Names the knob: `few_shot`, `model` ...; a step's dimension is `step:name`."""
        raise NotImplementedError

    @property
    def family(self) -> Family:
        """The layer in which it is searched: structure (outermost), step, or weight."""
        raise NotImplementedError

    def refuses(self, step: Step) -> str | None:
        """Returns why this cog may not touch `step`, as a sentence for the user, or None."""
        raise NotImplementedError

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        """Returns the options at `step`; the first leaves the step as it is.

        Called once before the search, and not allowed to ask the proposer: only `evolve` may
        spend. Fewer than two options (slots of a dynamic cog count): there is nothing to tune.
        No options at all: a dynamic cog has nothing to add either.
        """
        raise NotImplementedError


@runtime_checkable
class DynamicCog(Cog, Protocol):
    """A cog that adds options as evaluations come in."""

    @property
    def num_slots(self) -> int:
        """How many options it may add at one step over the whole run."""
        raise NotImplementedError

    def evolve(
        self, step: Step, runs: Sequence[Run], added: Sequence[Option], context: CogContext
    ) -> Sequence[Option]:
        """Returns new options for `step`, given the `runs` so far and the options `added` so far.

        Must depend on nothing but its arguments, so that a resumed run adds the same options.
        """
        raise NotImplementedError
