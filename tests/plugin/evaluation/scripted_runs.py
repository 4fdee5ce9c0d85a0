"""Runs that are right or failed, and what a runner needs to judge and to repeat them."""

from __future__ import annotations

from adaseek.evaluation.base import RunContext
from adaseek.evaluation.retry import Retry
from adaseek.recipe import Recipe
from adaseek.workflow import Call, Example, Trace, Usage

__all__ = ["QUICK", "answer", "failed", "metric"]

QUICK = Retry(tries=3, base_s=0.0, cap_s=0.0)


def answer(recipe: Recipe, example: Example, context: RunContext) -> Trace:
    usage = Usage(input_tokens=10, output_tokens=10, requests=1, cost_usd=0.01)
    call = Call(f"c{context.replicate}", "answer", outputs={"a": example.id}, usage=usage)
    return Trace((call,), output=example.id, latency_s=1.0)


def failed(kind: str, text: str = "boom") -> Trace:
    usage = Usage(input_tokens=1, output_tokens=0, requests=1, cost_usd=0.001)
    call = Call("c", "answer", usage=usage)
    return Trace((call,), error=text, error_kind=kind)  # type: ignore[arg-type]


def metric(example: Example, trace: Trace) -> float:
    return 1.0 if trace.output == example.id else 0.0
