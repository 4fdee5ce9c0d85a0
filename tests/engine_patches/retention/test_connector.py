"""Contexts in host memory, through vLLM's real schedulers and our connector's scheduler half."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.retention import feature
from adaseek_vllm.retention.connector import RetentionConnector
from adaseek_vllm.retention.host_scheduler import check_host
from adaseek_vllm.retention.settings import RetentionSettings
from adaseek_vllm.retention.simulator import (
    EngineShape,
    SimulatedEngine,
    block_bytes,
    pretended_config,
    slot_bytes,
)
from simulated_turns import follow, tokens, turn
from vllm.config import KVTransferConfig
from vllm.v1.kv_cache_interface import FullAttentionSpec

BLOCK = 16
HOST: dict[str, object] = {"policy": "host", "host_bytes": "4MiB", "max_pinned_fraction": 1.0}
Make = Callable[..., SimulatedEngine]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes an engine of 40 blocks."""

    def engine(settings: dict[str, object], *, fails: Any = None, **shape: Any) -> SimulatedEngine:
        shape = {"num_blocks": 41, "async_scheduling": request.param, **shape}
        more = {"copy_fails": fails} if fails is not None else {}
        return SimulatedEngine(EngineShape(**shape), retention=settings, **more)

    return engine


def crowd(engine: SimulatedEngine) -> None:
    """Runs one-shot requests that want twice the whole pool, one after the other."""
    for index in range(6):
        turn(engine, None, tokens(200, start=50 + index))


def taken(engine: SimulatedEngine) -> dict[str, Any]:
    """Returns everything that was counted and not read, as the connector reports it."""
    engine.scheduler.retention.accounts.settle()
    return dict(engine.scheduler.retention_meter.take({}))


def test_context_leaves_the_gpu_and_comes_back(make: Make) -> None:
    engine = make(HOST)
    first = turn(engine, "s", tokens(300))
    crowd(engine)
    retention, host = engine.scheduler.retention, engine.scheduler.retention_host
    assert retention.num_held_blocks == 0
    assert host.num_tokens == 19 * BLOCK
    assert len(retention.prefetcher.on_host) == 1
    again = turn(engine, "s", follow(first))
    assert again.cached_tokens == 19 * BLOCK
    assert retention.counts.num_resumed_loaded == 1


@pytest.mark.parametrize("block_tokens", [4, 16, 32])
def test_bytes_of_a_copy_are_known_before_there_is_an_engine(block_tokens: int) -> None:
    shape = EngineShape(num_blocks=41, block_tokens=block_tokens)
    engine = SimulatedEngine(shape, retention={**HOST, "host_bytes": 9 * slot_bytes(shape)})
    assert engine.scheduler.retention_host.block_bytes == block_bytes(shape)
    assert engine.scheduler.retention_host.swap.pool.num_slots == 9


def test_gpu_copy_is_used_while_it_is_there(make: Make) -> None:
    engine = make(HOST, num_blocks=400)
    first = turn(engine, "s", tokens(300))
    crowd(engine)
    assert turn(engine, "s", follow(first)).cached_tokens == 19 * BLOCK
    assert engine.scheduler.retention.counts.num_resumed_loaded == 0


def test_blocks_are_held_until_their_copies_are_complete(make: Make) -> None:
    # A block takes four steps on this link.
    engine = make(HOST, link_bytes_per_s=4096 / 0.04)
    turn(engine, "s", tokens(300))
    engine.submit("other", tokens(20, start=3), max_tokens=60)
    for _ in range(10):
        engine.step()
        assert engine.scheduler.retention.num_held_blocks == 19
    # Who needs the memory does not wait for a copy.
    turn(engine, None, tokens(560, start=4))
    assert engine.num_preemptions == 0


def test_failed_load_is_computed_instead_and_asked_for_once(make: Make) -> None:
    engine = make(HOST, fails=lambda number: True)
    good = make(HOST)
    outputs = []
    for each in (engine, good):
        first = turn(each, "s", tokens(300))
        crowd(each)
        outputs.append(turn(each, "s", follow(first)).output)
    assert outputs[0] == outputs[1]
    # Copies out failed: nothing was there to load.
    assert engine.scheduler.retention_host.num_tokens == 0

    stored: list[int] = []
    engine = make(HOST, fails=lambda number: number in stored)
    first = turn(engine, "s", tokens(300))
    crowd(engine)
    stored.extend(range(1000))
    again = turn(engine, "s", follow(first))
    assert again.output == outputs[1]
    assert again.cached_tokens == 0
    assert engine.scheduler.retention.counts.num_resumed_loaded == 0


def test_last_turn_gives_its_slots_to_others(make: Make) -> None:
    engine = make(HOST)
    first = turn(engine, "s", tokens(300))
    crowd(engine)
    turn(engine, "s", follow(first), hints={"kvret_final": 1})
    # What the first prompt left may be shared.
    assert engine.scheduler.retention_host.num_tokens == 300 // BLOCK * BLOCK


def test_tenants_do_not_read_each_others_copies(make: Make) -> None:
    engine = make(HOST)
    first = turn(engine, "s", tokens(300), tenant="a")
    crowd(engine)
    assert engine.scheduler.retention_host.num_tokens > 0
    assert turn(engine, "s", follow(first), tenant="b").cached_tokens == 0
    crowd(engine)
    assert turn(engine, "s", follow(first), tenant="a").cached_tokens > 0


def test_reset_forgets_copies_too(make: Make) -> None:
    """After new weights, an old context is wrong wherever it is."""
    engine = make(HOST)
    first = turn(engine, "s", tokens(300))
    crowd(engine)
    assert engine.scheduler.reset_prefix_cache()
    assert engine.scheduler.retention_host.num_tokens == 0
    assert turn(engine, "s", follow(first)).cached_tokens == 0


def test_request_aborted_while_it_loads_leaks_nothing(make: Make) -> None:
    engine = make(HOST, link_bytes_per_s=4096 / 0.01)
    first = turn(engine, "s", tokens(300))
    for _ in range(60):
        engine.step()
    crowd(engine)
    engine.submit("next", follow(first), max_tokens=4, session="s")
    engine.step()
    assert engine.scheduler.retention_host.swap.num_loading == 1
    engine.abort("next")
    for _ in range(60):
        engine.step()
    assert engine.scheduler.retention_host.swap.num_loading == 0
    assert engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 40
    assert engine.scheduler.reset_prefix_cache()


def test_pool_is_bounded_and_the_longest_away_gives_way(make: Make) -> None:
    engine = make({**HOST, "host_bytes": 25 * 4096})
    for index, name in enumerate("abc"):
        turn(engine, name, tokens(300, start=index + 1))
        crowd(engine)
    pool = engine.scheduler.retention_host.swap.pool
    assert len(pool) <= pool.num_slots == 25


def test_tenant_has_its_share_of_host_memory(make: Make) -> None:
    engine = make({**HOST, "host_bytes": 40 * 4096, "tenant_fraction": 0.6})
    pool = engine.scheduler.retention_host.swap.pool
    for index in range(3):
        turn(engine, f"mine-{index}", tokens(300, start=index), tenant="a")
        crowd(engine)
        assert 0 < pool.num_copies_of("a") <= 24
    other = turn(engine, "yours", tokens(200, start=9), tenant="b")
    crowd(engine)
    assert pool.num_copies_of("a") == 24
    assert turn(engine, "yours", follow(other), tenant="b").cached_tokens == 13 * BLOCK


def test_copies_under_way_are_counted_in_and_out(make: Make) -> None:
    engine = make(HOST)
    seen: dict[str, Any] = {}
    engine.scheduler.connector.read_stats = lambda: None
    first = turn(engine, "s", tokens(300), hints={"kvret_tool": "search"})
    crowd(engine)
    turn(engine, "s", follow(first), hints={"kvret_final": 1})
    seen = taken(engine)
    counters = seen["counter"]
    moved = float(19 * engine.scheduler.retention_host.block_bytes)
    assert counters["swap_bytes"] == {"out": moved, "in": moved}
    assert counters["resumes"] == {"host": 1.0}
    assert counters["saved_tokens"] == {"": 19 * BLOCK}
    assert set(counters["decisions"]) == {"host\x1fmodel", "drop\x1ffinal"}
    assert list(seen["histogram"]["tool_seconds"]) == ["search"]
    assert {"preserve", "swap"} <= set(counters["waste_token_seconds"])


@pytest.mark.parametrize(
    ("crowds", "cut", "outcome"),
    [(False, None, "gpu"), (True, None, "recompute"), (False, 100, "partial")],
)
def test_outcome_of_a_resume_is_counted(
    make: Make, crowds: bool, cut: int | None, outcome: str
) -> None:
    engine = make({"policy": "soft"})
    first = turn(engine, "s", tokens(300))
    if crowds:
        crowd(engine)
    turn(engine, "s", [*follow(first)[:cut], 1, 2, 3])
    assert taken(engine)["counter"]["resumes"] == {outcome: 1.0}


def test_waits_of_a_resume_are_counted(make: Make) -> None:
    engine = make({"policy": "soft", "estimate": "hint"})
    first = turn(engine, "s", tokens(300), hints={"kvret_tool": "t", "kvret_expect_s": 3.0})
    assert "resume_ttft_seconds" not in taken(engine).get("histogram", {})
    engine.now_s += 2.0
    again = turn(engine, "s", follow(first))
    assert again.first_token_s is not None
    seen = taken(engine)["histogram"]
    ttft_s = again.first_token_s - again.submitted_s
    assert seen["resume_ttft_seconds"] == {"": [pytest.approx(ttft_s)]}
    # It was away for two seconds and a step or so, not three.
    assert seen["duration_abs_error_seconds"] == {"": [pytest.approx(1.0, abs=0.1)]}


def test_turn_of_one_token_has_a_first_one_too(make: Make) -> None:
    engine = make({"policy": "soft"})
    first = turn(engine, "s", tokens(300))
    engine.submit("last", follow(first), max_tokens=1, session="s")
    assert engine.drain(max_steps=100)
    (values,) = taken(engine)["histogram"]["resume_ttft_seconds"].values()
    assert len(values) == 1
    assert engine.scheduler.retention.unanswered == []


def test_wait_for_memory_is_counted_once_it_is_over(make: Make) -> None:
    engine = make({"policy": "soft"})
    engine.submit("runs", tokens(400), max_tokens=100)
    engine.step()
    waits = engine.submit("waits", tokens(400, start=3), max_tokens=2)
    for _ in range(20):
        engine.step()
    assert "admission_delay_seconds" not in taken(engine).get("histogram", {})
    assert engine.drain(max_steps=500)
    (values,) = taken(engine)["histogram"]["admission_delay_seconds"].values()
    assert waits.first_token_s is not None
    assert values == [pytest.approx(waits.first_token_s - waits.submitted_s, rel=0.2)]


def test_reclaimed_blocks_are_counted_by_who_took_them(make: Make) -> None:
    engine = make({"policy": "pin", "max_pinned_fraction": 1.0})
    turn(engine, "s", tokens(300))
    # 21 blocks are free: the prompt takes them, the answer one more.
    turn(engine, None, tokens(330, start=9))
    assert taken(engine)["counter"]["reclaimed_blocks"] == {"running": 1.0}
    # A prompt of 25 blocks, and an answer that fits in the last of them.
    engine.submit("waits", tokens(390, start=8), max_tokens=2)
    assert engine.drain(max_steps=100)
    assert taken(engine)["counter"]["reclaimed_blocks"] == {"waiting": 3.0}
    engine.scheduler.reset_prefix_cache()
    assert taken(engine)["counter"]["reclaimed_blocks"] == {"reset": 15.0}


def connector_only(*, async_scheduling: bool = True, **settings: object) -> Any:
    """Returns a scheduler as the flag configures it."""
    full = RetentionSettings.read(settings).as_mapping()
    shape = EngineShape(num_blocks=41, async_scheduling=async_scheduling)
    config = pretended_config(shape, full)
    config.kv_transfer_config = KVTransferConfig(**feature.connector_config(full))  # type: ignore[arg-type]
    return SimulatedEngine(shape, retention=full, config=config).scheduler


def test_metrics_alone_leave_vllms_paths_as_they_are() -> None:
    scheduler = connector_only()
    connector = scheduler.connector
    assert isinstance(connector, RetentionConnector)
    assert scheduler.defer_block_free is False
    assert scheduler.requires_kv_delivery is False
    assert scheduler.recompute_kv_load_failures is True
    assert connector.get_num_new_matched_tokens(None, 0) == (0, False)
    assert connector.get_required_kvcache_layout(scheduler.vllm_config) is None
    assert not scheduler.vllm_config.kv_transfer_config.is_kv_consumer
    assert connector.get_finished_count() is None


def test_numbers_are_reported_when_there_are_any_else_now_and_then() -> None:
    scheduler = connector_only(async_scheduling=False)
    stats = scheduler.connector.get_kv_connector_stats()
    assert stats.data["gauge"]["pinned_blocks"] == {"": 0}
    assert "host_tokens" in stats.data["gauge"]
    assert scheduler.connector.get_kv_connector_stats() is None
    scheduler.retention_meter.count("saved_tokens", 5)
    assert scheduler.connector.get_kv_connector_stats().data["counter"]["saved_tokens"] == {"": 5}


def test_another_connector_is_refused_by_name() -> None:
    shape = EngineShape(num_blocks=41)
    config = pretended_config(shape, {})
    config.kv_transfer_config = KVTransferConfig(
        kv_connector="DecodeBenchConnector", kv_role="kv_both"
    )
    with pytest.raises(FeatureSettingsError, match="but DecodeBenchConnector is configured"):
        SimulatedEngine(shape, retention={}, config=config)


def test_host_memory_without_its_connector_is_refused() -> None:
    shape = EngineShape(num_blocks=41)
    settings = {"host_bytes": 10**6}
    config = pretended_config(shape, settings)
    config.kv_transfer_config = None
    with pytest.raises(FeatureSettingsError, match="set the flag, not `additional_config`"):
        SimulatedEngine(shape, retention=settings, config=config)


@pytest.mark.parametrize(
    ("host_bytes", "message"),
    [(100, "one block takes 4096"), ("900TiB", "this machine has")],
)
def test_impossible_host_memory_is_refused(host_bytes: object, message: str) -> None:
    with pytest.raises(FeatureSettingsError, match=message):
        SimulatedEngine(EngineShape(num_blocks=41), retention={"host_bytes": host_bytes})


def spec(*, tokens_per_hash: int = 16) -> Any:
    return SimpleNamespace(
        tokens_per_block=(16,), tokens_per_hash=tokens_per_hash, num_chunks=9, kv_bytes_per_chunk=1
    )


def groups(*specs: Any) -> Any:
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=one) for one in specs])


def test_models_whose_cache_is_not_one_kind_of_block_are_refused() -> None:
    full = object.__new__(FullAttentionSpec)
    check_host(spec(), groups(full), 1)
    for other in (groups(full, full), groups("state space")):
        with pytest.raises(FeatureSettingsError, match="full attention in every layer"):
            check_host(spec(), other, 1)
    with pytest.raises(FeatureSettingsError, match="one hash a block"):
        check_host(spec(tokens_per_hash=8), groups(full), 1)
