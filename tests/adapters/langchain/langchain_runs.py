"""Runs of a program as a tuning run makes them: an example of the user's, a recipe, a memo."""

from __future__ import annotations

from typing import Any

from adaseek.evaluation.base import CallRecord, RunContext
from adaseek.plugins import load_plugins
from adaseek.program import Program
from adaseek.recipe import Recipe
from adaseek.workflow import Trace

__all__ = ["RAW", "Memo", "bound", "run"]

RAW = {"inputs": {"q": "what is it"}, "outputs": {"a": "it"}}


class Memo(dict[str, CallRecord]):
    """A memo in memory."""

    def put(self, key: str, record: CallRecord) -> None:
        self[key] = record


def bound(obj: Any) -> Program:
    return Program(obj, load_plugins())


def run(
    obj: Any, recipe: Recipe | None = None, context: RunContext | None = None, raw: Any = RAW
) -> Trace:
    program = bound(obj)
    (example,) = program.examples("examples", [raw])
    return program.run(recipe or Recipe(), example, context or RunContext())
