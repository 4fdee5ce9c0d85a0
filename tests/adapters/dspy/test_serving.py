"""Hints of DSPy programs: session, expected tool and end, below the cache, if asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from adaseek.errors import ConfigurationError
from adaseek.testing.loopback import LoopbackServer

dspy = pytest.importorskip("dspy")

from adaseek_dspy import Hints, serving  # noqa: E402
from adaseek_dspy._compat import ENGINES, LEGACY_ENGINES  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(not ENGINES, reason="DSPy has engines from 3.4 on"),
]

FIELDS = ("session_id", "vllm_xargs")


def search(q: str) -> str:
    """Searches."""
    return "found"


def bare(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in FIELDS}


def test_a_session_is_told_and_nothing_else_differs(
    two_steps: Any, lm: Any, server: LoopbackServer
) -> None:
    plain = two_steps(q="?").y
    untold = server.bodies
    server.clear()
    with Hints().session("s1"):
        assert two_steps(q="?").y == plain
    assert [body["session_id"] for body in server.bodies] == ["s1", "s1"]
    assert [bare(body) for body in server.bodies] == untold
    two_steps(q="?")
    assert "session_id" not in server.bodies[-1]


def test_an_agents_turns_are_foreseen_from_the_runs_before(lm: Any, server: LoopbackServer) -> None:
    agent, hints = dspy.ReAct("q -> a", tools=[search], max_iters=3), Hints()
    with hints.session():
        for _ in range(4):
            agent(q="?")
    first, second, third = server.bodies[-3:]
    assert first["vllm_xargs"]["kvret_tool"] == "search"
    assert 0 <= first["vllm_xargs"]["kvret_expect_s"] < 60
    assert "vllm_xargs" not in second
    assert third["vllm_xargs"] == {"kvret_final": 1}
    assert len({body["session_id"] for body in server.bodies}) == 4
    assert len({body["session_id"] for body in (first, second, third)}) == 1


def test_a_named_session_is_never_said_to_end(
    two_steps: Any, lm: Any, server: LoopbackServer
) -> None:
    hints = Hints()
    for _ in range(5):
        with hints.session("s1"):
            two_steps(q="?")
    assert not any("vllm_xargs" in body for body in server.bodies)


def test_without_foresight_a_session_is_all_that_is_told(lm: Any, server: LoopbackServer) -> None:
    agent, hints = dspy.ReAct("q -> a", tools=[search], max_iters=3), Hints(foresees=False)
    with hints.session():
        for _ in range(4):
            agent(q="?")
    assert all("session_id" in body for body in server.bodies)
    assert not any("vllm_xargs" in body for body in server.bodies)


def test_threads_and_tasks_belong_to_the_session(
    two_steps: Any, lm: Any, server: LoopbackServer
) -> None:
    parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
    with Hints().session("s1"):
        parallel([(two_steps, {"q": "a"}), (two_steps, {"q": "b"})])
    assert [body["session_id"] for body in server.bodies] == ["s1"] * 4
    server.clear()
    with Hints().session("s2"):
        asyncio.run(dspy.Predict("q -> x").acall(q="?"))
    assert [body["session_id"] for body in server.bodies] == ["s2"]


def test_another_session_gets_the_cached_answer(
    make_lm: Callable[..., Any], server: LoopbackServer
) -> None:
    program, hints = dspy.Predict("q -> x"), Hints()
    with dspy.context(lm=make_lm(cache=True, temperature=0.123)):
        for name in ("s1", "s2"):
            with hints.session(name):
                program(q=f"asked of {server.url}")
    assert [body["session_id"] for body in server.bodies] == ["s1"]


def test_engines_are_as_before_when_the_last_session_is_over() -> None:
    methods = [(cls, name) for cls, name, _ in serving._ENTRIES]
    before = [getattr(cls, name) for cls, name in methods]
    with Hints().session(), Hints().session():
        assert [getattr(cls, name) for cls, name in methods] != before
    assert [getattr(cls, name) for cls, name in methods] == before
    assert len(ENGINES) == len(LEGACY_ENGINES) == 2


def test_a_name_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="session"), Hints().session("x" * 200):
        pass


def test_a_session_joins_the_calls_own_extra_fields(
    make_lm: Callable[..., Any], server: LoopbackServer
) -> None:
    # Extra fields make DSPy send the request through LiteLLM.
    with dspy.context(lm=make_lm(extra_body={"min_p": 0.1})), Hints().session("s1"):
        dspy.Predict("q -> x")(q="?")
    (body,) = server.bodies
    assert (body["session_id"], body["min_p"]) == ("s1", 0.1)
