"""What finished runs say about one step; shared by the dynamic cogs.

An ensemble's copies do the same task as the step that they replace, so all of them share one pool
of evidence.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaseek.cogs.base import CogContext, Run
from adaseek.recipe import Recipe, owner_id
from adaseek.voting import majority_index
from adaseek.workflow import Call, Step, Trace

__all__ = ["in_effect", "train_runs", "usable_calls"]


def train_runs(runs: Sequence[Run], context: CogContext) -> list[Run]:
    """Returns the runs on training examples: a cog must never learn from another example."""
    train = {example.id for example in context.train}
    return [run for run in runs if run.example.id in train]


def usable_calls(step: Step, trace: Trace) -> list[Call]:
    """Returns the calls that did the task of `step` and gave all of its outputs, in run order.

    Of the copies of an ensemble, only the one that the majority agrees with is returned: the
    run's score speaks for the combined answer, not for a copy that was outvoted.
    """
    owner = owner_id(step.id)
    calls = [call for call in trace.calls if owner_id(call.step) == owner and _has_all(call, step)]
    plain = [call for call in calls if call.step == owner]
    if plain:
        return plain
    rounds: list[list[Call]] = []  # the copies of one round have the same inputs
    for call in calls:
        if call.step.rpartition("#")[2].isdecimal():  # neither the judge nor a subtask
            known = next((copies for copies in rounds if copies[0].inputs == call.inputs), None)
            if known is None:
                rounds.append(known := [])
            known.append(call)
    return [copies[majority_index([c.outputs for c in copies])] for copies in rounds]


def in_effect(recipe: Recipe, step: Step) -> frozenset[str]:
    """Returns the instructions that `step`, or its copies, had under `recipe`."""
    owner = owner_id(step.id)
    changed = {
        setting.instructions
        for changed_step, setting in recipe.settings.items()
        if owner_id(changed_step) == owner and setting.instructions is not None
    }
    original = step.signature.instructions if step.signature else ""
    return frozenset(changed) or frozenset({original})


def _has_all(call: Call, step: Step) -> bool:
    outputs = step.signature.outputs if step.signature else ()
    return call.error is None and all(call.outputs.get(f.name) is not None for f in outputs)
