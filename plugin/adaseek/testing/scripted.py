"""A program without a language model: every outcome comes from a function. For tests of tuning.

`ScriptedProgram` and `ScriptedAdapter` are a complete, tiny adapter; they show what a framework
needs to be tunable.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any  # Any: the hooks pass the user's own objects

from adaseek._canonical import fingerprint
from adaseek.evaluation.base import RunContext
from adaseek.hooks import hookimpl
from adaseek.recipe import Recipe, Setting
from adaseek.workflow import (
    Call,
    Edge,
    Example,
    Field,
    ModelRef,
    Signature,
    Step,
    Trace,
    Usage,
    Workflow,
)

__all__ = ["ScriptedAdapter", "ScriptedOutcome", "ScriptedProgram"]

COGS = frozenset(
    {"ensemble", "decompose", "model", "params", "reasoning", "few_shot", "instructions"}
)


@dataclass(frozen=True)
class ScriptedOutcome:
    """What one run gives: an output, tokens and seconds, or an error."""

    output: Any = None
    input_tokens: int = 100
    output_tokens: int = 20
    latency_s: float = 1.0
    error: str | None = None
    error_kind: Any = None


@dataclass
class ScriptedProgram:
    """A chain of language-model steps whose outcome is `behave(settings, example)`.

    Attributes:
        behave: (step id -> setting of the tuned steps, example) -> outcome. Must be a pure
            function for the run to be repeatable.
        steps: ids of the steps, in order.
        num_runs: how often the program really ran.
    """

    behave: Callable[[Mapping[str, Setting], Example], ScriptedOutcome]
    steps: tuple[str, ...] = ("draft", "answer")
    model: ModelRef = field(default_factory=lambda: ModelRef("large"))
    num_runs: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def workflow(self) -> Workflow:
        signature = Signature(
            "Answer the question.", (Field("question", "input"), Field("answer", "output"))
        )
        steps = {
            name: Step(name, "lm", name, signature=signature, model=self.model, allowed=COGS)
            for name in self.steps
        }
        path = ("INPUT", *self.steps, "OUTPUT")
        edges = frozenset(Edge(a, b) for a, b in itertools.pairwise(path))
        return Workflow("scripted", steps, edges, ("question",), ("answer",))

    def run(self, recipe: Recipe, example: Example, context: RunContext) -> Trace:
        with self._lock:
            self.num_runs += 1
        outcome = self.behave(recipe.settings, example)
        share = len(self.steps)
        calls = tuple(
            self._call(i, step, outcome, share, recipe, example, context)
            for i, step in enumerate(self.steps)
        )
        return Trace(calls, outcome.output, outcome.latency_s, outcome.error, outcome.error_kind)

    def _call(
        self,
        index: int,
        step: str,
        outcome: ScriptedOutcome,
        share: int,
        recipe: Recipe,
        example: Example,
        context: RunContext,
    ) -> Call:
        seconds = outcome.latency_s / share
        model = recipe.setting(step).model or self.model
        usage = Usage(outcome.input_tokens // share, outcome.output_tokens // share, requests=1)
        cost = context.price(model, usage, seconds) if context.price else None
        return Call(
            id=f"{index}",
            step=step,
            start_s=index * seconds,
            end_s=(index + 1) * seconds,
            duration_s=seconds,
            inputs=dict(example.inputs),
            outputs={"answer": str(outcome.output)},
            model=model,
            usage=Usage(usage.input_tokens, usage.output_tokens, 0, 1, cost),
        )


class ScriptedAdapter:
    """The hooks of `ScriptedProgram`; give it as `plugins=[ScriptedAdapter()]`.

    Examples are mappings with `question` and `answer`; metrics get (example, output).
    """

    @hookimpl
    def adaseek_translate(self, obj: Any) -> Workflow | None:
        return obj.workflow() if isinstance(obj, ScriptedProgram) else None

    @hookimpl
    def adaseek_apply(self, obj: Any, recipe: Recipe) -> Any:
        if not isinstance(obj, ScriptedProgram):
            return None
        return ScriptedProgram(lambda _, example: obj.behave(recipe.settings, example), obj.steps)

    @hookimpl
    def adaseek_run(
        self, obj: Any, recipe: Recipe, example: Example, context: RunContext
    ) -> Trace | None:
        return obj.run(recipe, example, context) if isinstance(obj, ScriptedProgram) else None

    @hookimpl
    def adaseek_example(self, obj: Any, raw: Any) -> Example | None:
        if not isinstance(obj, ScriptedProgram):
            return None
        if isinstance(raw, Example):
            raw = {**raw.inputs, **raw.labels}
        inputs = {"question": raw["question"]}
        labels = {name: value for name, value in raw.items() if name != "question"}
        return Example(fingerprint([inputs, labels]), inputs, labels, raw)

    @hookimpl
    def adaseek_metric(self, obj: Any, metric: Callable[..., Any]) -> Callable[..., Any] | None:
        if not isinstance(obj, ScriptedProgram):
            return None
        return lambda example, trace: metric(example.raw, trace.output)
