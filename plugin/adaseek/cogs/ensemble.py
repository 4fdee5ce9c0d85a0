"""Structure cog: run a step several times and combine the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from adaseek.cogs.base import CogContext, Family, Option
from adaseek.errors import choices, require
from adaseek.recipe import Aggregate, Ensemble, Setting, member_id
from adaseek.workflow import Step

__all__ = ["EnsembleCog"]


@dataclass(frozen=True)
class EnsembleCog:
    """Offers to replace a step by `sizes` copies of itself whose answers are combined.

    `majority` takes the answer that most copies agree on (`adaseek.voting`), `judge` lets one
    more call choose, `best_of` takes the answer that a reward function of the user scores
    highest and is offered only if there is one. Copies and judge are steps of their own, so the
    inner layers may tune them. A step that answers in free text (`output` is "text") gets no
    `majority`: two free texts are never equal, so the vote would pay for every copy and return
    the first.

    Source: Cognify (arXiv 2502.08056) for ensembling as a structure cog.

    Args:
        sizes: numbers of copies to try, each >= 2.
        aggregates: ways to combine the answers to try.
        temperature: sampling temperature of the copies; > 0, or all of them would answer alike.
    """

    sizes: tuple[int, ...] = (3,)
    aggregates: tuple[Aggregate, ...] = ("majority", "judge", "best_of")
    temperature: float = 0.7
    name: str = "ensemble"
    family: Family = "structure"

    def __post_init__(self) -> None:
        sizes = bool(self.sizes) and all(size >= 2 for size in self.sizes)
        require(sizes, "sizes", self.sizes, "must hold numbers of copies >= 2")
        known = get_args(Aggregate)
        valid = bool(self.aggregates) and set(self.aggregates) <= set(known)
        require(valid, "aggregates", self.aggregates, f"must be a selection of {choices(known)}")
        require(self.temperature > 0, "temperature", self.temperature, "must be > 0")

    def refuses(self, step: Step) -> str | None:
        if step.kind != "lm":
            return "only a language-model step can be run several times for nothing but tokens"
        if step.signature is None:
            return "its answer has no known shape, so several answers cannot be combined"
        if step.signature.output == "tool_calls":
            return "it answers with tool calls, and running them several times may have effects"
        return None

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        ensembles = [
            Ensemble(size, aggregate, self.temperature, reward)
            for size in dict.fromkeys(self.sizes)
            for aggregate in dict.fromkeys(self.aggregates)
            for reward in _rewards(aggregate, step, context)
        ]
        return [Option(key="off"), *(_option(step, e, self.name) for e in ensembles)]


def _rewards(aggregate: Aggregate, step: Step, context: CogContext) -> list[str]:
    """Returns the rewards to offer `aggregate` with: none at all means not to offer it."""
    if aggregate == "best_of":
        return sorted(context.rewards)
    free_text = step.signature is not None and step.signature.output == "text"
    return [] if aggregate == "majority" and free_text else [""]


def _option(step: Step, ensemble: Ensemble, cog: str) -> Option:
    has_judge = ensemble.aggregate == "judge"
    members = [_copy(step, i, cog) for i in range(ensemble.num_members)]
    if has_judge:
        members.append(_judge(step))
    suffix = f"-{ensemble.reward}" if ensemble.reward else ""
    return Option(
        key=f"{ensemble.aggregate}-{ensemble.num_members}{suffix}",
        setting=Setting(ensemble=ensemble),
        members=tuple(members),
        expected_cost=float(ensemble.num_members + has_judge),
    )


def _copy(step: Step, index: int, cog: str) -> Step:
    reason = f"it is already one of the copies that `{cog}` makes"
    return replace(
        step,
        id=member_id(step.id, index),
        parent=step.id,
        allowed=step.allowed - {cog},
        blocked={**step.blocked, cog: reason},
    )


def _judge(step: Step) -> Step:
    # Its prompt is the adapter's own, so there is no signature; only its model can be chosen.
    return Step(
        id=member_id(step.id, "judge"),
        name=f"{step.name or step.id} judge",
        parent=step.id,
        model=step.model,
        allowed=frozenset({"model"}),
    )
