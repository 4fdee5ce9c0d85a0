"""Retention in vLLM's real scheduler classes, over a pretended model and clock."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from adaseek_vllm._compat import version
from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.retention.simulator import EngineShape, SimulatedEngine, SimulatedRequest
from adaseek_vllm.scheduler import make_scheduler, scheduler_class
from simulated_turns import follow, tokens, turn

BLOCK = 16
Make = Callable[..., SimulatedEngine]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes an engine of 40 blocks; keyword arguments are settings, `None` for stock vLLM."""

    def engine(settings: dict[str, object] | None, **shape: Any) -> SimulatedEngine:
        shape = {"num_blocks": 41, "async_scheduling": request.param, **shape}
        return SimulatedEngine(EngineShape(**shape), retention=settings)

    return engine


def finish(engine: SimulatedEngine) -> None:
    assert engine.drain(max_steps=2000)


def pause(
    engine: SimulatedEngine, session: str | None = "s", *, count: int = 300, **options: Any
) -> SimulatedRequest:
    """Runs one turn to its end."""
    prompt = options.pop("prompt", None) or tokens(count, start=sum(map(ord, str(session))))
    return turn(engine, session, prompt, **options)


def crowd(engine: SimulatedEngine) -> None:
    """Runs one-shot requests that want twice the whole pool, one after the other."""
    for _ in range(6):
        name = f"crowd-{len(engine.requests)}"
        engine.submit(name, tokens(200, start=50 + len(engine.requests)), max_tokens=8)
        finish(engine)


def test_stock_forgets_a_paused_session_and_retention_does_not(make: Make) -> None:
    cached = []
    for settings in (None, {"policy": "pin"}):
        engine = make(settings)
        turn = pause(engine)
        crowd(engine)
        cached.append(pause(engine, prompt=follow(turn)).cached_tokens)
    # 319 of the 320 tokens have KV: 19 full blocks.
    assert cached == [0, 19 * BLOCK]


def test_exactly_what_the_next_turn_hits_is_held(make: Make) -> None:
    engine = make({"policy": "pin", "max_pinned_fraction": 1.0})
    turn = pause(engine)
    assert engine.scheduler.retention.num_held_blocks == 19
    assert turn.report is not None
    assert turn.report["held_tokens"] == 19 * BLOCK
    again = pause(engine, prompt=follow(turn))
    assert again.cached_tokens == 19 * BLOCK


def test_held_blocks_are_the_requests_own_once_it_runs(make: Make) -> None:
    engine = make({"policy": "pin"})
    turn = pause(engine)
    engine.submit("next", follow(turn), max_tokens=40, session="s")
    engine.step()
    assert engine.scheduler.retention.num_held_blocks == 0
    finish(engine)
    assert engine.requests["next"].cached_tokens > 0


def test_hold_survives_the_queue_even_past_its_time(make: Make) -> None:
    engine = make({"policy": "pin", "max_ttl_s": 1.0}, max_num_seqs=1)
    turn = pause(engine)
    engine.submit("long", tokens(64, start=3), max_tokens=150)
    engine.step()
    engine.submit("next", follow(turn), max_tokens=4, session="s")
    engine.now_s += 5.0
    finish(engine)
    assert engine.requests["next"].cached_tokens == 19 * BLOCK


def test_request_that_lacks_memory_takes_what_is_held(make: Make) -> None:
    engine = make({"policy": "pin", "max_pinned_fraction": 1.0})
    for session in "abcd":
        pause(engine, session, count=130)
    held = engine.scheduler.retention.num_held_blocks
    assert held == 4 * 9
    assert pause(engine, None, count=560).is_finished
    assert engine.num_preemptions == 0
    assert engine.scheduler.retention.counts.num_reclaimed_blocks > 0


def test_no_more_is_taken_than_is_missing_and_the_tail_goes_first(make: Make) -> None:
    engine = make({"policy": "pin", "max_pinned_fraction": 1.0})
    turn = pause(engine, count=300)
    pause(engine, None, count=330)
    # 40 blocks, 19 held: 21 are free, the other one needs 22.
    assert engine.scheduler.retention.num_held_blocks == 18
    assert pause(engine, prompt=follow(turn)).cached_tokens == 18 * BLOCK


def test_running_request_grows_into_held_memory_without_a_preemption(make: Make) -> None:
    engine = make({"policy": "pin", "max_pinned_fraction": 1.0})
    pause(engine, count=300)
    engine.submit("grows", tokens(300, start=9), max_tokens=300)
    finish(engine)
    assert len(engine.requests["grows"].output) == 300
    assert engine.num_preemptions == 0


def test_waiting_request_is_not_kept_waiting_beyond_the_limit(make: Make) -> None:
    engine = make({"policy": "pin", "max_pinned_fraction": 1.0, "max_admission_delay_s": 0.2})
    pause(engine, count=400)
    engine.submit("runs", tokens(64, start=1), max_tokens=200)
    engine.step()
    engine.submit("waits", tokens(300, start=2), max_tokens=1)
    for _ in range(10):
        engine.step()
    assert engine.requests["waits"].first_token_s is None
    for _ in range(20):
        engine.step()
    assert engine.requests["waits"].is_finished
    assert not engine.requests["runs"].is_finished


def test_with_nothing_running_nobody_waits(make: Make) -> None:
    engine = make({"policy": "pin", "max_pinned_fraction": 1.0, "max_admission_delay_s": 3600})
    pause(engine, count=500)
    engine.submit("big", tokens(400, start=2), max_tokens=1)
    assert engine.step() > 0


@pytest.mark.parametrize(
    ("order", "num_repeated", "place"),
    [("session", 64, 0), ("session", 0, 0), ("context", 64, 0), ("context", 32, 1),
     ("context", 0, 3), ("fcfs", 64, 3)],
)  # fmt: skip
def test_place_of_a_follow_up_in_the_queue(
    make: Make, order: str, num_repeated: int, place: int
) -> None:
    engine = make({"policy": "soft", "order": order}, max_num_seqs=1, session_order=order != "fcfs")
    turn = pause(engine, count=64)
    ended_s = engine.now_s
    for index in range(3):
        # The session's first turn arrived at 0; two of its five blocks are worth 40% of the way.
        engine.now_s = ended_s * (1.5 + index)
        engine.submit(f"other-{index}", tokens(64, start=index + 1), max_tokens=4)
    engine.now_s = ended_s * 4
    prompt = [*turn.prompt[:num_repeated], *tokens(70, start=50)]
    engine.submit("next", prompt, max_tokens=4, session="s")
    finish(engine)
    started = {name: request.first_token_s for name, request in engine.requests.items()}
    assert sorted(started, key=lambda name: started[name] or 0.0)[1:].index("next") == place


def test_diverged_history_releases_what_it_will_not_hit(make: Make) -> None:
    engine = make({"policy": "pin"}, max_num_seqs=1)
    turn = pause(engine)
    engine.submit("running", tokens(64, start=7), max_tokens=50)
    engine.step()
    rewritten = [*turn.prompt[:160], *tokens(100, start=77)]
    engine.submit("next", rewritten, max_tokens=1, session="s")
    assert engine.scheduler.retention.num_held_blocks == 10
    assert engine.scheduler.retention.counts.num_diverged_blocks == 9
    finish(engine)
    assert engine.requests["next"].cached_tokens == 160


def test_final_turn_is_reused_before_anything_else(make: Make) -> None:
    engine = make({"policy": "soft"})
    keeper = pause(engine, "keeper", count=200)
    first = pause(engine, "leaver", count=100)
    pause(engine, "leaver", prompt=follow(first, 100), hints={"kvret_final": 1})
    assert [session.key.name for session in engine.scheduler.retention.sessions] == ["keeper"]
    pause(engine, None, count=180)
    pause(engine, None, count=90)
    # Fewer blocks were free than the two took, but the leaver's went first.
    assert pause(engine, "keeper", prompt=follow(keeper)).cached_tokens == 13 * BLOCK


def test_held_session_expires(make: Make) -> None:
    engine = make({"policy": "pin", "max_ttl_s": 5.0})
    pause(engine)
    pause(engine, "hinted", count=100, hints={"kvret_ttl_s": 1.0})
    engine.now_s += 2.0
    pause(engine, None, count=20)
    held = {session.key.name for session in engine.scheduler.retention.holding}
    assert held == {"s"}
    engine.now_s += 4.0
    pause(engine, None, count=20)
    assert engine.scheduler.retention.num_held_blocks == 0


def test_paused_sessions_do_not_keep_the_engine_awake(make: Make) -> None:
    engine = make({"policy": "pin"})
    pause(engine)
    engine.step()  # vLLM tells the workers about the finished request
    assert engine.scheduler.retention.num_held_blocks > 0
    assert not engine.scheduler.has_requests()


def test_reset_of_the_prefix_cache_releases_everything(make: Make) -> None:
    engine = make({"policy": "pin"})
    turn = pause(engine)
    assert engine.scheduler.reset_prefix_cache()
    assert engine.scheduler.retention.num_held_blocks == 0
    assert pause(engine, prompt=follow(turn)).cached_tokens == 0


def test_shutdown_releases_everything(make: Make) -> None:
    engine = make({"policy": "pin"})
    pause(engine)
    engine.scheduler.shutdown()
    assert engine.scheduler.retention.num_held_blocks == 0


@pytest.mark.parametrize(("settings", "expected"), [({}, 0), ({"pin_aborted": True}, 18)])
def test_aborted_turn_is_held_only_if_told_so(
    make: Make, settings: dict[str, object], expected: int
) -> None:
    engine = make({"policy": "pin", **settings})
    engine.submit("gone", tokens(300), max_tokens=100, session="s")
    for _ in range(4):
        engine.step()
    engine.abort("gone")
    finish(engine)
    assert engine.scheduler.retention.num_held_blocks == expected


def test_follow_up_aborted_in_the_queue_releases_its_session(make: Make) -> None:
    engine = make({"policy": "pin"}, max_num_seqs=1)
    turn = pause(engine)
    engine.submit("runs", tokens(20, start=4), max_tokens=50)
    engine.step()
    engine.submit("next", follow(turn), max_tokens=4, session="s")
    assert engine.scheduler.retention.num_held_blocks == 19
    engine.abort("next")
    assert engine.scheduler.retention.num_held_blocks == 0
    finish(engine)


def test_tenants_do_not_share_sessions_and_have_a_quota(make: Make) -> None:
    engine = make({"policy": "pin", "tenant_fraction": 0.25, "max_pinned_fraction": 0.5})
    first = pause(engine, "same", tenant="a")
    second = pause(engine, "same", tenant="b", prompt=first.prompt)
    assert second.cached_tokens == 0
    ledger = engine.scheduler.retention.holdings.ledger
    assert ledger.num_tenant_blocks("a") == ledger.num_tenant_blocks("b") == 10
    pause(engine, "third", tenant="a", count=100)
    assert ledger.num_tenant_blocks("a") <= 10
    assert ledger.num_blocks <= 20


def test_salt_can_be_required(make: Make) -> None:
    engine = make({"policy": "pin", "require_salt": True})
    pause(engine, "open", count=100)
    assert engine.scheduler.retention.num_held_blocks == 0
    pause(engine, "salted", count=100, tenant="a")
    assert engine.scheduler.retention.num_held_blocks > 0


def test_without_a_session_nothing_is_held_or_reported(make: Make) -> None:
    engine = make({"policy": "pin"})
    turn = pause(engine, None)
    assert turn.report is None
    assert engine.scheduler.retention.num_held_blocks == 0


def test_prefix_fallback_recognises_a_continuation(make: Make) -> None:
    engine = make({"policy": "pin", "session_fallback": "prefix"})
    turn = pause(engine, None)
    crowd(engine)
    again = pause(engine, None, prompt=follow(turn))
    assert again.cached_tokens == 19 * BLOCK
    assert engine.scheduler.retention.counts.num_resumed == 1


def test_session_named_in_hints_is_a_session(make: Make) -> None:
    engine = make({"policy": "pin"})
    pause(engine, None, hints={"session_id": "x", "kvret_tool": "search"})
    (session,) = engine.scheduler.retention.holding
    assert (session.key.name, session.tool, session.kind) == ("x", "search", "tool")


def test_two_turns_of_a_session_at_once_leak_nothing(make: Make) -> None:
    engine = make({"policy": "pin"})
    turn = pause(engine)
    for name in ("left", "right"):
        engine.submit(name, follow(turn), max_tokens=9, session="s")
    finish(engine)
    assert engine.scheduler.retention.num_held_blocks <= 20
    engine.scheduler.retention.release_all()
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 40


def test_prompt_that_skips_the_cache_cannot_be_blocked_by_its_own_session(make: Make) -> None:
    engine = make({"policy": "pin", "max_pinned_fraction": 1.0})
    turn = pause(engine, count=500)
    request = engine.submit("next", follow(turn), max_tokens=4, session="s")
    assert request is engine.requests["next"]
    waiting = engine.scheduler.requests["next"]
    waiting.skip_reading_prefix_cache = True
    finish(engine)
    assert request.cached_tokens == 0
    assert request.is_finished


def test_idle_memory_means_stock_order_and_stock_hits(make: Make) -> None:
    finished = []
    for settings in (None, {}):
        engine = make(settings, num_blocks=2000)
        turns = [pause(engine, name, count=100) for name in "abc"]
        for name, last in zip("abc", turns, strict=True):
            pause(engine, name, prompt=follow(last))
        finished.append(
            [(r.output, r.cached_tokens, r.finished_s) for r in engine.requests.values()]
        )
    assert finished[0] == finished[1]


def test_step_cost_is_learned_from_the_steps_that_run(make: Make) -> None:
    engine = make({}, num_blocks=400)
    for index in range(6):
        for other in range(4):
            name = f"{index}-{other}"
            engine.submit(name, tokens(90 + 70 * other, start=index * 9 + other), max_tokens=15)
        finish(engine)
    learned, true = engine.scheduler.retention.outlook.step_cost.cost, engine.shape.cost
    assert learned.forward_s(300) == pytest.approx(true.forward_s(300), rel=0.1)
    assert learned.fixed_s == pytest.approx(true.fixed_s, rel=0.1)


def test_prefix_caching_off_is_refused_with_the_cure(make: Make) -> None:
    with pytest.raises(FeatureSettingsError, match="leave one of the two out"):
        make({"policy": "pin"}, prefix_caching=False)


def test_base_class_follows_async_scheduling() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    for is_async in (False, True):
        cls = scheduler_class({"kv_retention": {}}, async_scheduling=is_async)
        assert issubclass(cls, AsyncScheduler) is is_async
        stock = scheduler_class({}, async_scheduling=is_async)
        assert stock.__module__.startswith("vllm.")


def test_long_flags_on_an_unknown_vllm_leave_its_own_scheduler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[type] = []
    for name in ("Scheduler", "AsyncScheduler"):
        module = "scheduler" if name == "Scheduler" else "async_scheduler"
        stock = type(name, (), {"__init__": lambda self, **_: made.append(type(self))})
        monkeypatch.setattr(f"vllm.v1.core.sched.{module}.{name}", stock)
    monkeypatch.setattr(version, "SUPPORTED", ("9.9",))
    scheduling = SimpleNamespace(async_scheduling=False)
    config = SimpleNamespace(additional_config={"kv_retention": {}}, scheduler_config=scheduling)
    make_scheduler(vllm_config=config)
    assert [cls.__name__ for cls in made] == ["Scheduler"]
    assert "vLLM's own runs" in caplog.text
