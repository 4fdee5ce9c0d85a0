"""Two frameworks in one program: each adapter tunes its own calls, and neither disturbs the other.

A LangChain hook does not see the model calls of a DSPy module, nor the other way round.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from adaseek.evaluation.base import RunContext
from adaseek.plugins import load_plugins
from adaseek.program import Program
from adaseek.recipe import Recipe
from adaseek.testing.conformance import INSTRUCTIONS, marking_recipe
from adaseek.testing.loopback import LoopbackServer
from adaseek.workflow import ModelRef

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

dspy = pytest.importorskip("dspy")
pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

import langchain_shapes as shapes  # noqa: E402
from adaseek_dspy import apply as apply_dspy  # noqa: E402
from adaseek_dspy import translate as translate_dspy  # noqa: E402
from adaseek_langchain import AdaSeekHook, disable, enable  # noqa: E402


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(shapes.answer, models=("m", "m2"), keep_alive=False) as running:
        yield running


def marked(server: LoopbackServer) -> list[bool]:
    """Returns for each request whether it carries a marking recipe."""
    return [b["model"] == "m2" and INSTRUCTIONS in str(b["messages"]) for b in server.bodies]


def dspy_recipe(program: Any, server: LoopbackServer) -> Recipe:
    return marking_recipe(translate_dspy(program), ModelRef("openai/m2", server.url))


def test_a_tuned_dspy_module_in_a_graphs_node(server: LoopbackServer) -> None:
    module = dspy.ChainOfThought("q -> a")
    module.set_lm(shapes.dspy_lm(server.url))
    tuned = apply_dspy(module, dspy_recipe(module, server))
    built = shapes.StateGraph(shapes.State)
    built.add_node("n", lambda state: {"a": tuned(q=state["q"]).a})
    hook = AdaSeekHook()
    found = shapes.in_line(built, "n").invoke(shapes.INPUT, {"callbacks": [hook]})
    assert found["a"] == "v-a"
    assert marked(server) == [True]
    (trace,) = hook.traces
    assert [call.kind for call in trace.calls] == ["code"]
    assert trace.usage.requests == 0


def test_a_langchain_tool_in_a_tuned_dspy_agent(server: LoopbackServer) -> None:
    react = shapes.tool_in_react(server.url)
    with dspy.context(allow_tool_async_sync_conversion=True):
        program = Program(react, load_plugins())
        (example,) = program.examples("data", [dspy.Example(q="what", a="x").with_inputs("q")])
        trace = program.run(dspy_recipe(react, server), example, RunContext())
    assert trace.error is None
    assert marked(server) == [True, True, True]
    assert [c.outputs for c in trace.calls if c.kind == "tool"] != []
    assert trace.usage.requests == server.usage()["requests"] == 3


def test_both_adapters_tune_their_own_calls_of_one_program(server: LoopbackServer) -> None:
    program = shapes.chain_in_forward(server.url)
    observing = enable()
    try:
        program(**shapes.INPUT)
    finally:
        disable()
    recipe = marking_recipe(observing.workflow, ModelRef("m2", server.url))
    tuned = apply_dspy(program, dspy_recipe(program, server))
    server.clear()
    hook = enable(recipe)
    try:
        tuned(**shapes.INPUT)
    finally:
        disable()
    assert marked(server) == [True, True]
    assert hook.missed == 0
    server.clear()
    program(**shapes.INPUT)
    assert marked(server) == [False, False]
