"""KV retention inside vLLM's scheduler (0.32), synchronous or asynchronous.

Overrides call vLLM's own method and add to it. One function is wrapped on one instance:
`KVCacheManager.allocate_slots`, so that whoever lacks memory gets what paused sessions hold within
the same call, before vLLM would preempt a running request or leave one waiting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from adaseek_vllm._compat import engine_control
from adaseek_vllm._compat.answers import AnswerText
from adaseek_vllm._compat.kv_blocks import PrefixCacheBlocks, allocate_or_else
from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.retention.connector import RetentionConnector
from adaseek_vllm.retention.controller import RetentionController
from adaseek_vllm.retention.hints import Hints
from adaseek_vllm.retention.host_returns import PooledReturns
from adaseek_vllm.retention.host_scheduler import HostScheduler
from adaseek_vllm.retention.metrics import Meter, Samples
from adaseek_vllm.retention.policy import EngineLoad
from adaseek_vllm.retention.sessions import SessionKey
from adaseek_vllm.retention.settings import FLAG, RetentionSettings
from adaseek_vllm.retention.turn_reader import TurnReader, extra_args, owner
from adaseek_vllm.retention.turns import Outcome, Released
from adaseek_vllm.retention.waste import StepCost

__all__ = ["RetentionMixin"]

# Steps are looked at one by one until there are enough, then now and then.
_LEARN_ALL, _LEARN_EVERY = 200, 8
# More steps than vLLM keeps in flight: their output was never handed back.
_MAX_AWAITED = 64
_STATS_EVERY_S = 1.0
# Bounds a wait for memory where steps are far slower than the limit in seconds expects.
_MAX_WAIT_STEPS = 50


# vLLM's types are not followed by every type checker, and its requests are passed as they are.
class RetentionMixin(Scheduler):  # type: ignore[misc]
    """Goes before `Scheduler` or `AsyncScheduler` in the order of classes."""

    def __init__(self, *args: Any, vllm_config: Any, **kwargs: Any) -> None:
        super().__init__(*args, vllm_config=vllm_config, **kwargs)
        settings = RetentionSettings.read(vllm_config.additional_config["kv_retention"])
        self._check_supported(settings)
        # What retention knows of time; a simulated engine has its own.
        self.retention_clock: Callable[[], float] = time.monotonic
        self.retention_blocks = PrefixCacheBlocks(self.kv_cache_manager)
        self.retention_meter = Meter()
        self.retention_host: HostScheduler | None = None
        if isinstance(self.connector, RetentionConnector):
            self.connector.read_stats = self._retention_stats
            self.retention_host = self.connector.host
        host = self.retention_host
        self.retention = RetentionController(
            settings,
            self.retention_blocks,
            num_blocks=self.retention_blocks.num_usable,
            block_tokens=self.block_size,
            now=lambda: self.retention_clock(),
            load=self._retention_load,
            meter=self.retention_meter,
            host=host.swap if host is not None else None,
            returns=(
                PooledReturns(host, self.retention_blocks)
                if host is not None and settings.prefetch
                else None
            ),
        )
        if host is not None:
            host.meter = self.retention_meter
            host.is_awaited = self.retention.is_awaited
        self.retention_turns = TurnReader(
            self.retention_blocks,
            AnswerText(vllm_config.model_config),
            settings,
            block_tokens=self.block_size,
            keeps_context=host is not None and settings.prefetch,
        )
        self._retention_reports: dict[str, dict[str, object]] = {}
        # When each request that lacks memory first did.
        self._short_since: dict[str, tuple[float, int]] = {}
        # Steps whose output is awaited, by the identity of what was scheduled.
        self._steps: dict[int, tuple[float, int, float]] = {}
        self._last_output_s = 0.0
        self._num_steps = 0
        self._last_stats_s = -math.inf
        self._overhead_s = 0.0
        engine_control.install()
        self._allocate_stock = self.kv_cache_manager.allocate_slots
        self.kv_cache_manager.allocate_slots = allocate_or_else(
            self._allocate_stock, self._reclaim_and_allocate
        )

    # Requests.

    def add_request(self, request: Any) -> None:
        if request.request_id not in self.requests:
            request.arrival_time = self._retention_arrival(request)
        super().add_request(request)

    def _free_blocks(self, request: Any) -> None:
        outcome = self._retention_ended(request)
        super()._free_blocks(request)
        if outcome is not None and outcome.reuse_first:
            self.retention_blocks.reuse_first(outcome.reuse_first)

    def _free_request(self, request: Any, delay_free_blocks: bool = False) -> Any:
        kv_params, ec_params = super()._free_request(request, delay_free_blocks)
        report = self._retention_reports.pop(request.request_id, None)
        if report is not None:
            kv_params = {**(kv_params or {}), "kv_retention": report}
        return kv_params, ec_params

    # Steps.

    def schedule(self, throttle_prefills: bool = False) -> Any:
        started_s = self.retention_clock()
        output = super().schedule(throttle_prefills)
        scheduled = time.perf_counter()
        host = self.retention_host
        for new in output.scheduled_new_reqs:
            self.retention.admitted(
                new.req_id,
                num_cached_tokens=new.num_computed_tokens,
                num_loaded_tokens=host.take_loaded(new.req_id) if host is not None else 0,
            )
            if (short := self._short_since.pop(new.req_id, None)) is not None:
                self.retention.accounts.waited(short[0], self.retention_clock())
        for resumed_id in output.scheduled_cached_reqs.resumed_req_ids:
            self._short_since.pop(resumed_id, None)
        num_tokens = output.total_num_scheduled_tokens
        if (pairs := self._context_pairs(output)) is not None:
            self._steps[id(output)] = (started_s, num_tokens, pairs)
        if reuse_first := self.retention.tick(num_new_tokens=num_tokens):
            self.retention_blocks.reuse_first(reuse_first)
        self._overhead_s += time.perf_counter() - scheduled
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        updated = time.perf_counter()
        now_s = self.retention_clock()
        if (step := self._steps.pop(id(scheduler_output), None)) is not None:
            started_s, num_tokens, pairs = step
            # Under asynchronous scheduling a step starts when the one before it is done.
            seconds = now_s - max(started_s, self._last_output_s)
            self.retention.outlook.step_cost.observe(num_tokens, pairs, seconds)
            if self.retention_host is not None:
                self.retention_host.step_s = seconds
        self._last_output_s = now_s
        for request_id in self.retention.unanswered:
            if self.requests[request_id].num_output_tokens:
                self.retention.answered(request_id)
        if self.retention_host is not None:
            for key in self.retention_host.swap.take_copied():
                self.retention.copied(key)
            self.retention.prefetcher.take_ended()
        self._overhead_s += time.perf_counter() - updated
        return outputs

    def _reclaim_and_allocate(self, request: Any, num_new_tokens: int, **kw: Any) -> Any:
        """Returns slots from what paused sessions hold, None if that is not enough either."""
        slots = None
        self.retention.note_shortage()
        must = self._must_have(request)
        released: list[Released] = []
        while slots is None:
            num_missing = self._num_missing_blocks(request, num_new_tokens, kw)
            given = self.retention.reclaim(num_missing, request_id=request.request_id, must=must)
            if given is None:
                break
            released.append(given)
            slots = self._allocate_stock(request, num_new_tokens, **kw)
        is_running = request.status == RequestStatus.RUNNING
        if slots is not None or is_running:
            num_blocks = sum(len(given.blocks) for given in released)
            self.retention.accounts.let_go(num_blocks, "running" if is_running else "waiting")
        if slots is None and request.status != RequestStatus.RUNNING:
            # It was not enough: nobody took a block, so nothing need be lost. For a running
            # request vLLM now preempts another, and must find nothing held when it does.
            self.retention.restore(released)
        return slots

    def _num_missing_blocks(self, request: Any, num_new_tokens: int, kw: dict[str, Any]) -> int:
        """Returns about how many blocks are missing, at least one; asking again corrects it."""
        num_had = int(request.num_computed_tokens + kw.get("num_new_computed_tokens", 0))
        num_wanted = num_new_tokens
        if request.status != RequestStatus.RUNNING:
            num_wanted = max(num_new_tokens, int(request.num_tokens) - num_had)
        num_blocks = math.ceil(num_wanted / int(self.block_size))
        return max(1, num_blocks - self.retention_blocks.num_free())

    # Orders from outside, see `adaseek_vllm._compat.engine_control`.

    def retention_order(self, order: str, *arguments: Any) -> Any:
        """Returns what an order yields: `status`, or `release` with a tenant and a session."""
        if order == "release":
            released, reuse_first = self.retention.release(*arguments)
            self.retention_blocks.reuse_first(reuse_first)
            return released
        assert order == "status", f"unknown order {order!r}"
        return self._retention_status()

    # Everything is let go.

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        self.retention.release_all()
        # Blocks that are copied to just now hold nothing that anybody will read. To vLLM they are
        # free for as long as it looks, and nothing is allocated meanwhile; then they wait for the
        # end of their copies.
        coming = self.retention.prefetcher.in_flight
        self.retention_blocks.release(coming)
        try:
            return bool(super().reset_prefix_cache(reset_running_requests, reset_connector))
        finally:
            self.retention_blocks.hold(coming)

    def shutdown(self) -> None:
        self.retention.release_all()
        super().shutdown()

    # Within.

    def _check_supported(self, settings: RetentionSettings) -> None:
        if not self.kv_cache_manager.enable_caching:
            raise FeatureSettingsError(
                f"{FLAG} keeps blocks of vLLM's prefix cache, which is off for this model or by "
                "--no-enable-prefix-caching: leave one of the two out."
            )
        if self.is_encoder_decoder:
            raise FeatureSettingsError(f"{FLAG} does not support encoder-decoder models.")
        if self.connector is not None and not isinstance(self.connector, RetentionConnector):
            raise FeatureSettingsError(
                f"{FLAG} brings its own KV connector, but {type(self.connector).__name__} is "
                "configured: leave one of the two out."
            )
        if settings.host_bytes and getattr(self.connector, "host", None) is None:
            raise FeatureSettingsError(
                f"{FLAG}: `host_bytes` is {settings.host_bytes}, but `kv_transfer_config` has no "
                "RetentionConnector with `cpu_bytes_to_use`: set the flag, not `additional_config`."
            )

    def _retention_stats(self) -> Samples | None:
        """Returns what is new for `/metrics`; with nothing new, the gauges now and then."""
        now_s = time.monotonic()
        meter, host = self.retention_meter, self.retention_host
        if meter.is_empty and now_s - self._last_stats_s < _STATS_EVERY_S:
            return None
        self._last_stats_s = now_s
        self.retention.accounts.settle()
        meter.count("overhead_seconds", self._overhead_s)
        self._overhead_s = 0.0
        gauges = self.retention.gauges()
        num_blocks = self.retention_blocks.num_usable
        gauges["pinned_ratio",] = self.retention.num_held_blocks / num_blocks
        gauges["host_tokens",] = host.num_tokens if host is not None else 0
        if host is not None:
            gauges["cost_coeff", "out_gbps"] = host.rate_out.bytes_per_s / 1e9
            gauges["cost_coeff", "in_gbps"] = host.rate_in.bytes_per_s / 1e9
        return meter.take(gauges)

    def _retention_arrival(self, request: Any) -> float:
        hints = Hints.read(extra_args(request))
        name = request.session_id or hints.session
        tenant, adapter = owner(request)
        return self.retention.arrived(
            request.request_id,
            SessionKey(tenant, adapter, str(name)) if name else None,
            arrival_s=request.arrival_time,
            fingerprints=lambda: list(reversed(request.block_hashes)),
            hits=lambda: self._hits_of_prompt(request),
        )

    def _hits_of_prompt(self, request: Any) -> Sequence[int]:
        if request.skip_reading_prefix_cache:
            return ()
        # vLLM computes the last token of a prompt in any case.
        return self.retention_blocks.hits(request, request.num_tokens - 1)[0]

    def _retention_ended(self, request: Any) -> Outcome | None:
        """Tells the controller how a request ended, and keeps a report for its response."""
        self._short_since.pop(request.request_id, None)
        knows = self.retention.knows(request.request_id)
        turn = self.retention_turns.read(request, looks_for_calls=knows)
        if turn is None:
            self.retention.cancelled(request.request_id)
            return None
        outcome = self.retention.ended(turn)
        if outcome.is_session:
            self._retention_reports[request.request_id] = {
                "decision": outcome.decision.action.value,
                "held_tokens": outcome.num_held * self.block_size,
                "tool": turn.tool,
                "calls_tool": turn.calls_tool,
            }
        return outcome

    def _must_have(self, request: Any) -> bool:
        """Returns whether even sessions that are worth holding must give way to a request."""
        if request.status == RequestStatus.RUNNING:
            return True
        now_s = self.retention_clock()
        # Its wait begins even where it is refused for what others load, with nothing held back.
        since_s, since_step = self._short_since.setdefault(
            request.request_id, (now_s, self.current_step)
        )
        if not self.running:
            return True
        limit_s = self.retention.settings.max_admission_delay_s
        return now_s - since_s >= limit_s or self.current_step - since_step >= _MAX_WAIT_STEPS

    def _retention_load(self, memory_price: float, cost: StepCost) -> EngineLoad:
        return EngineLoad(
            running_tokens=sum(request.num_computed_tokens for request in self.running),
            decode_tokens=len(self.running),
            step_tokens=self.max_num_scheduled_tokens,
            memory_price=memory_price,
            cost=cost,
            host=self.retention_host.cost if self.retention_host is not None else None,
        )

    def _retention_status(self) -> dict[str, object]:
        retention = self.retention
        return {
            "policy": retention.settings.policy,
            "num_sessions": len(retention.sessions),
            "num_sessions_holding": len(retention.holding),
            "num_held_blocks": retention.num_held_blocks,
            "num_blocks": self.retention_blocks.num_usable,
            "block_tokens": self.block_size,
            "counts": asdict(retention.counts),
        }

    def _context_pairs(self, output: Any) -> float | None:
        """Returns how many pairs of tokens a step attends over; None if it is not learned from."""
        if not output.num_scheduled_tokens:
            return None
        self._num_steps += 1
        if self._num_steps > _LEARN_ALL and self._num_steps % _LEARN_EVERY:
            return None
        if len(self._steps) > _MAX_AWAITED:
            self._steps.clear()
        pairs = 0.0
        for request_id, num_new in output.num_scheduled_tokens.items():
            # The scheduler has already counted the new tokens as computed.
            pairs += num_new * (self.requests[request_id].num_computed_tokens - num_new / 2)
        return pairs
