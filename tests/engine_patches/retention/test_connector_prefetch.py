"""Contexts that come back to the GPU ahead of their turns, through vLLM's real schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from adaseek_vllm.retention.simulator import EngineShape, SimulatedEngine, SimulatedRequest
from simulated_turns import follow, tokens, turn

BLOCK, NUM_BLOCKS = 16, 81
# A tool that takes long, and whose client says so.
CALL = {"kvret_tool": "t", "kvret_expect_s": 30.0}
Make = Callable[..., SimulatedEngine]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes an engine that copies every context out; a block takes five steps on its link."""

    def engine(*, fails: Any = lambda _: False, **settings: object) -> SimulatedEngine:
        shape = EngineShape(
            num_blocks=NUM_BLOCKS,
            step_tokens=64,
            async_scheduling=request.param,
            link_bytes_per_s=4096 / 0.05,
        )
        host = {"policy": "host", "host_bytes": "4MiB", "prefetch": True, "inflight_fraction": 0.5}
        more = {"max_pinned_fraction": 1.0, "estimate": "hint", **settings}
        return SimulatedEngine(shape, retention=host | more, copy_fails=fails)

    return engine


def until_coming(engine: SimulatedEngine) -> SimulatedRequest:
    """Pauses a session, lets others take its blocks, and stops when they begin to come back."""
    first = turn(engine, "s", tokens(300), hints=CALL)
    for index in range(20):
        engine.submit(f"other-{index}", tokens(200, start=50 + index), max_tokens=20)
        while engine.scheduler.has_unfinished_requests():
            engine.step()
            if swap(engine).num_bringing:
                return first
    raise AssertionError("nothing is brought back")


def until_back(engine: SimulatedEngine) -> None:
    """Steps until what is on its way has arrived."""
    engine.submit("meanwhile", tokens(20, start=99), max_tokens=400)
    for _ in range(300):
        if not swap(engine).num_bringing:
            break
        engine.step()
    engine.abort("meanwhile")
    assert engine.drain(max_steps=300)


def swap(engine: SimulatedEngine) -> Any:
    return engine.scheduler.retention_host.swap


def counts(engine: SimulatedEngine) -> Any:
    return engine.scheduler.retention.counts


def test_turn_finds_its_context_on_the_gpu(make: Make) -> None:
    engine = make()
    engine.scheduler.connector.read_stats = lambda: None
    first = until_coming(engine)
    until_back(engine)
    assert engine.scheduler.retention.num_held_blocks == 19
    again = turn(engine, "s", follow(first))
    assert again.cached_tokens == 19 * BLOCK
    assert counts(engine).num_resumed_loaded == 0
    assert counts(engine).prefetches == {"hit": 1}
    taken = engine.scheduler.retention_meter.take({})["counter"]
    assert taken["resumes"] == {"prefetched": 1.0}
    assert taken["prefetch"] == {"hit": 1.0}


def test_without_it_the_turn_waits_for_the_copy(make: Make) -> None:
    engine = make(prefetch=False)
    with pytest.raises(AssertionError, match="nothing is brought back"):
        until_coming(engine)
    first = engine.requests["s-0"]
    again = turn(engine, "s", follow(first))
    assert again.cached_tokens == 19 * BLOCK
    assert counts(engine).num_resumed_loaded == 1


def test_turn_that_comes_too_early_waits_for_what_is_on_its_way(make: Make) -> None:
    engine = make()
    first = until_coming(engine)
    num_loads = engine.copies.num_loads if engine.copies else 0
    again = turn(engine, "s", follow(first))
    assert again.cached_tokens == 19 * BLOCK
    assert counts(engine).prefetches == {"late": 1}
    assert engine.copies is not None
    # Nothing was copied twice.
    assert engine.copies.num_loads <= num_loads + 1
    assert counts(engine).num_resumed_loaded == 0


def test_who_lacks_memory_gets_it_and_nobody_is_preempted(make: Make) -> None:
    engine = make()
    until_coming(engine)
    wants_all = engine.submit("all", tokens(1200, start=7), max_tokens=40)
    assert engine.drain(max_steps=3000)
    assert wants_all.is_finished
    assert engine.num_preemptions == 0
    assert counts(engine).prefetches == {"wasted": 1}
    assert engine.scheduler.retention.num_held_blocks == 0
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == NUM_BLOCKS - 1


def test_copy_that_fails_costs_time_and_no_answer(make: Make) -> None:
    # What was copied out is good; every copy back fails.
    engine = make(fails=lambda number: swap(engine).job(number).is_back)
    first = until_coming(engine)
    again = turn(engine, "s", follow(first))
    assert again.cached_tokens < 19 * BLOCK
    assert "hit" not in counts(engine).prefetches
    assert len(again.output) == 20


def test_reset_forgets_what_is_on_its_way(make: Make) -> None:
    engine = make()
    first = until_coming(engine)
    engine.scheduler.reset_prefix_cache()
    assert swap(engine).num_bringing
    until_back(engine)
    assert engine.scheduler.reset_prefix_cache()
    assert len(swap(engine).pool) == 0
    assert turn(engine, "s", follow(first)).cached_tokens == 0


def test_reset_that_stops_who_runs_does_not_wait_for_what_is_on_its_way(make: Make) -> None:
    engine = make()
    first = until_coming(engine)
    running = engine.submit("running", tokens(60, start=98), max_tokens=200)
    for _ in range(3):
        engine.step()
    coming = engine.scheduler.retention.prefetcher.in_flight
    pool = engine.scheduler.kv_cache_manager.block_pool
    assert coming
    is_refused = engine.num_in_flight > 0
    if is_refused:
        # Beside a connector vLLM refuses while a step is computed, copies or not.
        with pytest.raises(RuntimeError, match="Failed to reset"):
            engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    else:
        assert engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        assert pool.get_num_free_blocks() == NUM_BLOCKS - 1 - len(coming)
    # Nobody is given what the copy still writes to.
    assert all(pool.blocks[block].ref_cnt == 1 for block in coming)
    until_back(engine)
    assert running.is_finished
    assert len(running.output) == 200
    assert pool.get_num_free_blocks() == NUM_BLOCKS - 1
    assert is_refused or turn(engine, "s", follow(first)).cached_tokens == 0


def test_turn_that_diverges_computes_its_own(make: Make) -> None:
    engine = make()
    until_coming(engine)
    again = turn(engine, "s", tokens(300, start=3))
    assert again.cached_tokens == 0
    until_back(engine)
    assert engine.scheduler.retention.num_held_blocks <= 20
    engine.scheduler.retention.release_all()
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == NUM_BLOCKS - 1


def test_client_that_goes_while_its_turn_waits_leaks_nothing(make: Make) -> None:
    engine = make()
    first = until_coming(engine)
    engine.submit("next", follow(first), max_tokens=4, session="s")
    engine.step()
    engine.abort("next")
    until_back(engine)
    assert engine.scheduler.retention.num_held_blocks == 0
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == NUM_BLOCKS - 1
