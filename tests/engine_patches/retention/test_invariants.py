"""Random traces through vLLM's real schedulers: nobody starves, nothing leaks.

ADASEEK_NUM_TRACES sets how many, ADASEEK_FIRST_TRACE the first seed; a failure names its seed. For
very many, see many_traces.py.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from adaseek_vllm.retention.sessions import Prefetch
from adaseek_vllm.retention.settings import POLICIES
from adaseek_vllm.retention.simulator import (
    EngineShape,
    SimulatedEngine,
    SimulatedRequest,
    pretended_config,
)
from vllm.v1.request import RequestStatus

NUM_TRACES = int(os.environ.get("ADASEEK_NUM_TRACES", "480"))
FIRST_TRACE = int(os.environ.get("ADASEEK_FIRST_TRACE", "0"))
BLOCK = 4
TENANTS = (None, None, "a", "b")
SYSTEM_PROMPT = list(range(500, 500 + 2 * BLOCK))
DELAY_S = 0.3
CONFIGS = 24
# vLLM rounds the copy of a block up to a page of memory.
SLOT_BYTES = 4096


@dataclass
class Trace:
    """One engine, what was asked of it, and the checks after each step."""

    engine: SimulatedEngine
    random: random.Random
    last: dict[str, SimulatedRequest] = field(default_factory=dict)
    tenants: dict[str, str | None] = field(default_factory=dict)
    open: list[tuple[str, int]] = field(default_factory=list)
    short_since: dict[str, float] = field(default_factory=dict)
    is_resetting: bool = False
    is_returning: bool = False
    num_acts: int = 0

    @property
    def scheduler(self) -> Any:
        return self.engine.scheduler

    @property
    def retention(self) -> Any:
        return self.engine.scheduler.retention

    def act(self) -> None:
        """Does one random thing."""
        self.num_acts += 1
        # In between there is calm, in which what was pushed out may come back.
        is_calm = self.is_returning and self.num_acts % 40 > 20
        weights = (1, 0, 16, 1, 0, 0, 2) if is_calm else (4, 2, 12, 2, 0.6, 0.3, 0)
        action = self.random.choices(
            ("turn", "one_shot", "step", "wait", "abort", "reset", "return"), weights
        )[0]
        getattr(self, f"_{action}")()

    def finish(self) -> None:
        """Lets everything end: it must, in time that does not depend on what is held."""
        for _ in range(3000):
            if not self.scheduler.has_unfinished_requests():
                break
            self._step()
        self._step()
        for _ in range(3000):
            # vLLM waits for the copies of requests that were aborted, too.
            if not self.num_loading:
                break
            self._step()
        assert not self.num_loading, "a copy back never ends"
        assert not self.scheduler.has_unfinished_requests(), "requests are stuck"
        for name, num_tokens in self.open:
            request = self.engine.requests[name]
            assert request.is_finished
            assert len(request.output) == num_tokens
        assert not self.scheduler.has_requests(), "paused sessions keep the engine awake"
        assert self.scheduler.reset_prefix_cache(), "a block is still referenced"
        assert self.retention.num_held_blocks == 0
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == self.engine.shape.num_blocks - 1
        assert all(block.ref_cnt == 0 for block in pool.blocks[1:])
        self._check_host_is_empty()

    def _check_host_is_empty(self) -> None:
        """A reset forgets every copy; those under way end as worthless."""
        if (host := self.scheduler.retention_host) is None:
            return
        for _ in range(3000):
            if not host.swap.num_jobs:
                break
            self.engine.step()
        assert host.swap.num_jobs == host.swap.num_outgoing == 0, "a copy never ends"
        assert len(host.swap.pool) == 0
        assert host.swap.pool.num_free == host.swap.pool.num_slots, "a slot leaked"

    def _return(self) -> None:
        """Goes on with a session whose context is back, or on its way."""
        known = [session for session in self.retention.sessions if session.key.name in self.last]
        back = [s for s in known if s.prefetch in (Prefetch.COMING, Prefetch.HELD)]
        if back:
            self._turn(self.random.choice(back).key.name)

    def _turn(self, session: str = "") -> None:
        session = session or f"s{self.random.randrange(6)}"
        tenant = self.tenants.setdefault(session, self.random.choice(TENANTS))
        last = self.last.get(session)
        is_over = last is not None and len(last.prompt) + len(last.output) > self._most // 2
        if last is None or is_over or not last.is_finished:
            prompt = [*SYSTEM_PROMPT, *self._tokens(1, self._most // 3)]
        elif self.random.random() < 0.2:
            cut = self.random.randrange(1, len(last.prompt) + 1)
            prompt = [*last.prompt[:cut], *self._tokens(1, 12)]
        else:
            prompt = [*last.prompt, *last.output, *self._tokens(0, 12)]
        hints = self.random.choice(
            (None, {"kvret_tool": "t"}, {"kvret_final": 1}, {"kvret_expect_s": 1.0})
        )
        request = self._submit(session, prompt, session=session, tenant=tenant, hints=hints)
        self.last[session] = request

    def _one_shot(self) -> None:
        tenant = self.random.choice(TENANTS)
        self._submit("x", self._tokens(1, self._most // 2), tenant=tenant)

    def _submit(self, prefix: str, prompt: list[int], **options: Any) -> SimulatedRequest:
        name = f"{prefix}-{len(self.engine.requests)}"
        num_tokens = self.random.randint(1, max(1, min(20, self._most - len(prompt))))
        self.open.append((name, num_tokens))
        return self.engine.submit(name, prompt, max_tokens=num_tokens, **options)

    def _step(self) -> None:
        must_progress, num_loads = self.is_only_waiting, self.num_loads
        num_tokens = self.engine.step()
        # Instead of computing, a step may begin to copy a context back; it may even end within it.
        has_progressed = num_tokens or self.num_loads > num_loads
        assert has_progressed or not must_progress, "nothing runs, and somebody still waits"
        self.check()

    def _wait(self) -> None:
        self.engine.now_s += self.random.choice((0.01, 0.1, 1.0, 10.0))

    def _abort(self) -> None:
        alive = [(n, t) for n, t in self.open if not self.engine.requests[n].is_finished]
        if alive:
            gone = self.random.choice(alive)
            self.open.remove(gone)
            self.engine.abort(gone[0])
            self.check()

    def _reset(self) -> None:
        self.is_resetting = True
        # vLLM refuses beside a connector that loads: blocks of loads, and of steps in flight, stay.
        keeps_blocks = self.scheduler.defer_block_free and self.engine.num_in_flight
        is_held = self.scheduler.kv_holding_waiting or keeps_blocks
        may_preempt = not is_held and self.random.random() < 0.5
        succeeded = self.scheduler.reset_prefix_cache(may_preempt)
        self.is_resetting = False
        assert self.retention.num_held_blocks == 0
        # Copies back that nobody asked for yet are in nobody's way.
        is_loading = self.num_loading > self.num_bringing
        is_idle = not (self.scheduler.running or self.engine.num_in_flight or is_loading)
        assert succeeded or not is_idle or is_held
        self.check()

    def check(self) -> None:
        """Recounts who refers to which block, and looks for those who wait in vain."""
        manager = self.scheduler.kv_cache_manager
        expected: Counter[int] = Counter()
        for name in self.scheduler.requests:
            for group in manager.get_block_ids(name):
                expected.update(group)
        for session in self.retention.holding:
            assert len(set(session.held)) == len(session.held)
            expected.update(session.held)
        for _, blocks in self.scheduler.deferred_frees:
            expected.update(block.block_id for block in blocks if not block.is_null)
        expected.update(self.retention.prefetcher.in_flight)
        pool = manager.block_pool
        actual = {block.block_id: block.ref_cnt for block in pool.blocks if not block.is_null}
        assert actual == {block: expected[block] for block in actual}
        assert pool.get_num_free_blocks() == sum(count == 0 for count in actual.values())
        self._check_limits()

    def _check_limits(self) -> None:
        ledger = self.retention.holdings.ledger
        held = {block for session in self.retention.holding for block in session.held}
        assert ledger.num_blocks == len(held) <= self.retention.holdings.max_blocks
        for tenant in ("a", "b"):
            assert ledger.num_tenant_blocks(tenant) <= self.retention.holdings.max_tenant_blocks
        if (host := self.scheduler.retention_host) is not None:
            swap = host.swap
            assert swap.num_in_flight <= swap.max_in_flight
            prefetcher = self.retention.prefetcher
            assert prefetcher.num_in_flight <= prefetcher.max_in_flight
            for tenant in ("a", "b"):
                assert swap.pool.num_copies_of(tenant) <= swap.pool.num_slots_of(tenant)
            assert len(swap.pool) + swap.pool.num_free == swap.pool.num_slots

    @property
    def num_loads(self) -> int:
        """Copies back that were begun so far."""
        return self.engine.copies.num_loads if self.engine.copies is not None else 0

    @property
    def num_bringing(self) -> int:
        """Copies back ahead of turns that were begun and have not ended."""
        host = self.scheduler.retention_host
        return host.swap.num_bringing if host is not None else 0

    @property
    def num_loading(self) -> int:
        """Copies on their way back, for requests that wait, went, or are expected."""
        host = self.scheduler.retention_host
        return host.swap.num_loading if host is not None else 0

    @property
    def is_only_waiting(self) -> bool:
        """Whether somebody waits and nobody runs, so that only the pool can be in the way.

        A load counts as running: nobody else may have its blocks before it ends.
        """
        is_waiting = self.scheduler.waiting or self.scheduler.kv_holding_waiting
        is_running = self.scheduler.running or self.engine.num_in_flight or self.num_loading
        return bool(is_waiting) and not is_running

    @property
    def num_only_held(self) -> int:
        """Blocks that would be free if no paused session held them."""
        pool, ledger = self.scheduler.kv_cache_manager.block_pool, self.retention.holdings.ledger
        held = {block for session in self.retention.holding for block in session.held}
        return sum(pool.blocks[block].ref_cnt == ledger.num_holders(block) for block in held)

    @property
    def _most(self) -> int:
        return (self.engine.shape.num_blocks - 2) * BLOCK

    def _tokens(self, low: int, high: int) -> list[int]:
        count = self.random.randint(low, max(low, high))
        return [self.random.randrange(1000, 1400) for _ in range(count)]


def make_trace(seed: int, configs: dict[int, tuple[EngineShape, dict[str, object], Any]]) -> Trace:
    rng = random.Random(seed)
    # Half of the traces bring contexts back from host memory ahead of their turns.
    is_returning = seed // CONFIGS % 4 in (1, 2)
    index = seed % CONFIGS + CONFIGS * is_returning
    if index not in configs:
        configs[index] = make_config(random.Random(seed % CONFIGS), is_returning=is_returning)
    shape, settings, config = configs[index]
    fail_rate = rng.choice((0.0, 0.0, 0.3, 1.0))
    engine = SimulatedEngine(
        shape,
        retention=settings,
        config=config,
        copy_fails=lambda number: random.Random(number).random() < fail_rate,
    )
    trace = Trace(engine, rng, is_returning=is_returning)
    if is_returning:
        expect_anything(trace, random.Random(-seed))
    watch_preemptions(trace)
    watch_waits(trace)
    return trace


def make_config(
    rng: random.Random, *, is_returning: bool = False
) -> tuple[EngineShape, dict[str, object], Any]:
    shape = EngineShape(
        num_blocks=rng.randint(12, 48),
        block_tokens=BLOCK,
        max_num_seqs=rng.choice((2, 4, 16)),
        step_tokens=rng.choice((16, 32, 128)),
        max_model_len=2048,
        session_order=rng.random() < 0.7,
        async_scheduling=rng.random() < 0.5,
        # A block in 0.1 ms, or in a tenth of a second, ten times as long as a step.
        link_bytes_per_s=rng.choice((1e7, 1e4)),
    )
    num_slots = rng.choice((0, 3, 20, 100))
    settings: dict[str, object] = {
        "policy": rng.choice([p for p in POLICIES if num_slots or p != "host"]),
        "host_bytes": num_slots * SLOT_BYTES,
        "inflight_fraction": rng.choice((0.05, 0.5)),
        "max_pinned_fraction": rng.choice((0.3, 0.5, 1.0)),
        "tenant_fraction": rng.choice((0.2, 0.6)),
        "min_pin_tokens": rng.choice((0, BLOCK)),
        "max_ttl_s": rng.choice((0.5, 5.0, 100.0)),
        "max_admission_delay_s": DELAY_S,
        "session_fallback": rng.choice(("none", "prefix")),
        "order": rng.choice(["context", "session"]) if shape.session_order else "fcfs",
        "pin_aborted": rng.random() < 0.3,
        "max_sessions": rng.choice((2, 1000)),
        "estimate": rng.choice(("learned", "elapsed", "hint")),
        "prefetch": rng.random() < 0.8,
    }
    if is_returning:
        shape = replace(shape, step_tokens=min(shape.step_tokens, 32))
        settings |= {"prefetch": True, "inflight_fraction": rng.choice((0.2, 0.5))}
        settings |= {"policy": rng.choice(("host", "auto")), "host_bytes": 100 * SLOT_BYTES}
    return shape, settings, pretended_config(shape, settings)


def expect_anything(trace: Trace, rng: random.Random) -> None:
    """Contexts come back ahead of their turns whether or not it pays, which is rare here."""
    trace.retention.outlook.prefetch_gain = lambda *args, **kwargs: rng.choice((-1.0, *[1.0] * 9))


def watch_preemptions(trace: Trace) -> None:
    """No running request is preempted while anything is held, or comes back for nobody yet."""
    preempt = trace.scheduler._preempt_request

    def checked(*args: Any, **kwargs: Any) -> None:
        is_held = trace.retention.num_held_blocks or trace.num_bringing
        assert trace.is_resetting or not is_held, "preempted beside a pin"
        preempt(*args, **kwargs)

    trace.scheduler._preempt_request = checked


def watch_waits(trace: Trace) -> None:
    """Once a request has lacked memory for long enough, it lacks it only if nothing is held."""
    manager = trace.scheduler.kv_cache_manager
    allocate = manager.allocate_slots

    def checked(request: Any, *args: Any, **kwargs: Any) -> Any:
        slots = allocate(request, *args, **kwargs)
        name = request.request_id
        if slots is not None or request.status == RequestStatus.RUNNING:
            trace.short_since.pop(name, None)
            return slots
        since_s = trace.short_since.setdefault(name, trace.engine.now_s)
        if trace.engine.now_s - since_s >= DELAY_S or not trace.scheduler.running:
            # All that is held, by nobody else, would not have been enough.
            free = manager.block_pool.get_num_free_blocks() + trace.num_only_held
            # A context is copied back only beside what vLLM keeps for those that compute.
            free -= kwargs.get("reserved_blocks", 0)
            assert free * BLOCK < request.num_tokens + BLOCK, "kept waiting by a pin"
        return slots

    manager.allocate_slots = checked


def run_trace(seed: int, configs: dict[int, tuple[EngineShape, dict[str, object], Any]]) -> None:
    """Runs one random trace.

    Args:
        seed: of everything in it.
        configs: those made so far; each takes longer to make than a trace to run.

    Raises:
        AssertionError: an invariant does not hold; names the seed.
    """
    trace = make_trace(seed, configs)
    try:
        for _ in range(trace.random.randint(20, 120)):
            trace.act()
        trace.finish()
    except AssertionError as error:
        raise AssertionError(f"trace {seed}: {error}") from error


@pytest.mark.parametrize("part", range(8))
def test_random_traces(part: int) -> None:
    configs: dict[int, tuple[EngineShape, dict[str, object], Any]] = {}
    for seed in range(FIRST_TRACE + part, FIRST_TRACE + NUM_TRACES, 8):
        run_trace(seed, configs)


@pytest.mark.parametrize("seed", [7274, 5000066])
def test_traces_that_failed_once(seed: int) -> None:
    run_trace(seed, {})
