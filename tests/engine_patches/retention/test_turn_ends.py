"""How a turn ended, as vLLM's real scheduler sees it: stops, pauses of intercepts, and orders."""

from __future__ import annotations

from typing import Any

import pytest
from adaseek_vllm._compat.engine_control import METHOD
from adaseek_vllm.retention.simulator import EngineShape, SimulatedEngine
from vllm.v1.engine.core import EngineCore, EngineCoreProc

PROMPT = [10 + (7 * index) % 900 for index in range(300)]
# What the pretended model writes first in a request of the name "turn".
TOKEN = 1000 + (sum(map(ord, "turn")) * 31) % 40_000


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def engine(request: pytest.FixtureRequest) -> SimulatedEngine:
    shape = EngineShape(num_blocks=41, block_tokens=16, async_scheduling=request.param)
    return SimulatedEngine(shape, retention={"policy": "pin"})


def end_by_abort(engine: SimulatedEngine, *, text: str, stop: list[str], **options: Any) -> None:
    """Runs a turn that vLLM's front end ends, as it does for a client that went or a stop text."""
    engine.submit("turn", PROMPT, max_tokens=100, session="s", **options)
    engine.scheduler.requests["turn"].sampling_params.stop = stop
    engine.scheduler.retention_turns.answer_text = lambda token_ids: text
    for _ in range(4):
        engine.step()
    engine.abort("turn")
    assert engine.drain(max_steps=100)


def end_by_stop(engine: SimulatedEngine, *, text: str = "", **options: Any) -> None:
    """Runs a turn of one token, at which the engine stops."""
    engine.scheduler.retention_turns.answer_text = lambda token_ids: text
    engine.submit("turn", PROMPT, max_tokens=100, session="s", **options)
    engine.scheduler.requests["turn"].sampling_params.stop_token_ids = [TOKEN]
    assert engine.drain(max_steps=100)


@pytest.mark.parametrize(
    ("text", "stop", "is_held"),
    [
        ("Thought.\nObservation:", ["\nObservation:"], True),
        ("Thought.\nObserv", ["\nObservation:"], False),
        ("Thought.\nObservation:", [], False),
    ],
)
def test_stop_text_is_an_end_and_a_lost_client_is_not(
    engine: SimulatedEngine, text: str, stop: list[str], is_held: bool
) -> None:
    end_by_abort(engine, text=text, stop=stop)
    assert bool(engine.scheduler.retention.num_held_blocks) is is_held


@pytest.mark.parametrize(
    ("pause_at", "text", "kind"),
    [
        (["\nObservation:"], "\nObservation:", "tool"),
        (["other"], "\nObservation:", None),  # the end of the intercept: nothing follows
    ],
)
def test_intercept_pauses_at_its_texts_only(
    engine: SimulatedEngine, pause_at: list[str], text: str, kind: str | None
) -> None:
    hints = {"kvret_pause_at": pause_at, "kvret_final": 1}
    end_by_abort(engine, text=text, stop=["\nObservation:"], hints=hints)
    kinds = [session.kind for session in engine.scheduler.retention.sessions]
    assert kinds == ([] if kind is None else [kind])


@pytest.mark.parametrize(
    ("hints", "text", "expected"),
    [
        ({"kvret_pause_at": [TOKEN]}, "", ("pin", True, "")),
        ({"kvret_pause_at": [TOKEN], "kvret_tool": "t"}, "", ("pin", True, "t")),
        ({"kvret_pause_at": [5], "kvret_tool": "t"}, "", ("drop", False, "")),
        ({"kvret_pause_at": []}, '{"name": "f", "arguments": {}}', ("pin", True, "f")),
        ({"kvret_pause_at": []}, "plain", ("drop", False, "")),
        # Without a place to pause it is no intercept, and final means final.
        ({}, '{"name": "f", "arguments": {}}', ("drop", True, "f")),
        ({"kvret_pause_at": "all"}, "", ("drop", False, "")),
    ],
)
def test_intercept_that_does_not_pause_is_final(
    engine: SimulatedEngine, hints: dict[str, Any], text: str, expected: tuple[str, bool, str]
) -> None:
    end_by_stop(engine, text=text, hints={"kvret_final": 1, **hints})
    report = engine.requests["turn"].report
    assert report is not None
    assert (report["decision"], report["calls_tool"], report["tool"]) == expected


def test_order_to_release_ends_a_paused_session_of_the_tenant(engine: SimulatedEngine) -> None:
    engine.submit("one", PROMPT, max_tokens=4, session="s", tenant="a")
    engine.submit("two", PROMPT, max_tokens=4, session="s", tenant="b")
    assert engine.drain(max_steps=100)
    scheduler = engine.scheduler
    held = scheduler.retention_order("status")["num_held_blocks"]
    assert scheduler.retention_order("release", "", "s") == 0
    num_released = scheduler.retention_order("release", "a", "s")
    assert 0 < num_released < held
    assert scheduler.retention_order("status")["num_held_blocks"] == held - num_released
    assert [session.key.tenant for session in scheduler.retention.sessions] == ["b"]


def test_order_to_release_leaves_a_session_whose_next_turn_is_here(
    engine: SimulatedEngine,
) -> None:
    turn = engine.submit("one", PROMPT, max_tokens=4, session="s")
    assert engine.drain(max_steps=100)
    engine.submit("next", [*turn.prompt, *turn.output, 5], max_tokens=4, session="s")
    assert engine.scheduler.retention_order("release", "", "s") == 0
    assert engine.drain(max_steps=100)
    assert engine.requests["next"].cached_tokens > 0


def test_orders_reach_the_scheduler_as_vllm_calls_it(engine: SimulatedEngine) -> None:
    core: Any = type("Core", (), {"scheduler": engine.scheduler})()
    method = getattr(EngineCore, METHOD).__get__(core)

    def call(*arguments: Any) -> Any:
        return method(*EngineCoreProc._convert_msgspec_args(method, arguments))

    assert call("status", [])["policy"] == "pin"
    assert call("release", ["", "s"]) == 0
