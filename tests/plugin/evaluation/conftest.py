"""Tasks and runs without any model: a run's answer is a function of recipe and example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adaseek.evaluation.base import Task
from adaseek.evaluation.journal import Journal
from adaseek.recipe import Recipe, Setting
from adaseek.workflow import Call, Example, ModelRef, Trace, Usage

MODEL = ModelRef("small", "http://127.0.0.1:8000/v1")


def make_task(example: int, recipe: int = 0, replicate: int = 0) -> Task:
    settings = {"answer": Setting(instructions=f"Variant {recipe}.")} if recipe else {}
    return Task(Recipe(settings), Example(f"example-{example}", {"q": example}), replicate)


def make_trace(example: Example, *, cost_usd: float | None = 0.01, tokens: int = 10) -> Trace:
    usage = Usage(input_tokens=tokens, output_tokens=tokens, requests=1, cost_usd=cost_usd)
    call = Call(
        "c0",
        "answer",
        end_s=1.0,
        duration_s=1.0,
        inputs=dict(example.inputs),
        outputs={"a": f"answer to {example.id}"},
        model=MODEL,
        usage=usage,
    )
    return Trace((call,), output=f"answer to {example.id}", latency_s=1.0)


@pytest.fixture
def task() -> Callable[..., Task]:
    return make_task


@pytest.fixture
def trace() -> Callable[..., Trace]:
    return make_trace


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "journal.db", identity={"seed": 0}) as opened:
        yield opened
