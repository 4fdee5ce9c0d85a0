"""Weight cog: whether a step writes down its reasoning before it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from adaseek.cogs.base import CogContext, Family, Option
from adaseek.errors import choices, require
from adaseek.recipe import Reasoning, Setting
from adaseek.voting import UNVOTED_FIELDS
from adaseek.workflow import Step

__all__ = ["ReasoningCog"]

_COSTS = {"chain_of_thought": 2.0, "plan": 2.5}
"""Rough cost of the longer output relative to a bare answer; only orders the proposals."""


@dataclass(frozen=True)
class ReasoningCog:
    """Offers to reason step by step first (`chain_of_thought`) or to plan first (`plan`).

    Args:
        kinds: what to offer beside leaving the step as it is (`off`).
    """

    kinds: tuple[Reasoning, ...] = ("chain_of_thought", "plan")
    name: str = "reasoning"
    family: Family = "weight"

    def __post_init__(self) -> None:
        known = [kind for kind in get_args(Reasoning) if kind != "off"]
        valid = set(self.kinds) <= set(known) and len(set(self.kinds)) == len(self.kinds)
        require(valid, "kinds", self.kinds, f"must be a selection of {choices(known)}, each once")

    def refuses(self, step: Step) -> str | None:
        if step.kind != "lm":
            return "only a language-model step reasons"
        signature = step.signature
        if signature is None:
            return "its prompt is not known, so no reasoning can be put before the answer"
        if signature.output == "tool_calls":
            return "it answers with tool calls, which leave no room for reasoning"
        if signature.output == "json_schema":
            return "its answer is constrained to a JSON schema, which has no field for reasoning"
        present = sorted({f.name for f in signature.fields} & UNVOTED_FIELDS)
        if present:
            return f"it already has a field `{present[0]}`"
        return None

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        offered = [
            Option(key=kind, setting=Setting(reasoning=kind), expected_cost=_COSTS[kind])
            for kind in self.kinds
        ]
        return [Option(key="off"), *offered]
