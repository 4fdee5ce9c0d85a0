"""Keeps account of what retention does, for tests, reports and `/metrics`."""

from __future__ import annotations

from adaseek_vllm.retention.holdings import Holdings
from adaseek_vllm.retention.metrics import Meter
from adaseek_vllm.retention.outlook import Outlook
from adaseek_vllm.retention.policy import Action
from adaseek_vllm.retention.prefetch import Prefetcher
from adaseek_vllm.retention.sessions import Prefetch, Session, SessionTable
from adaseek_vllm.retention.turns import Counts
from adaseek_vllm.retention.waste import recompute_waste

__all__ = ["Accounts"]


class Accounts:
    """Counts since the start, and since the last reading of the meter.

    Args:
        meter: counts for whoever reads it.
        block_tokens: tokens of a block.
    """

    def __init__(self, meter: Meter, *, block_tokens: int) -> None:
        self.counts = Counts()
        self.meter = meter
        self._block_tokens = block_tokens
        self._last_s: float | None = None
        self._unread_waste = 0.0

    def decided(self, action: Action, reason: str) -> None:
        """Counts a decision: of the `model`, for a `final` turn, by a `limit`, or taken `again`."""
        self.counts.decisions[action.value] = self.counts.decisions.get(action.value, 0) + 1
        self.meter.count("decisions", 1, action.value, reason)

    def prefetched(self, outcome: str) -> None:
        """Counts a context copied back ahead of its turn: a `hit`, too `late`, or `wasted`."""
        self.counts.prefetches[outcome] = self.counts.prefetches.get(outcome, 0) + 1
        self.meter.count("prefetch", 1, outcome)

    def returned(self, session: Session, now_s: float) -> None:
        """Counts a session's return."""
        self.counts.num_resumed += 1
        self.counts.num_resumed_held += bool(session.held)
        if session.paused_s is not None:
            away_s = now_s - session.paused_s
            self.meter.observe("tool_seconds", away_s, self.meter.tool(session.tool or "none"))
            error_s = abs(away_s - session.expected_s)
            self.meter.observe("duration_abs_error_seconds", error_s)

    def answered(self, queued_s: float, now_s: float) -> None:
        """Counts how long a turn of a paused session took to its first token."""
        self.meter.observe("resume_ttft_seconds", now_s - queued_s)

    def waited(self, since_s: float, now_s: float) -> None:
        """Counts how long a request waited from when it first lacked memory until it ran."""
        self.meter.observe("admission_delay_seconds", now_s - since_s)

    def repeated(self, num_hit: int, num_held: int) -> None:
        """Counts how many of the blocks that a session held its next turn repeats."""
        self.counts.num_diverged_blocks += num_held - num_hit
        self.meter.observe("prefix_survival_ratio", num_hit / num_held)

    def admitted(
        self, session: Session, *, num_cached: int, num_loaded: int, outlook: Outlook
    ) -> None:
        """Counts what became of a paused context, in tokens, when its next turn begins to run."""
        num_saved = min(num_cached, session.context_tokens)
        num_lost = session.context_tokens - num_saved
        outcome = "recompute" if not num_saved else "partial"
        if not num_lost:
            was_prefetched = session.prefetch is Prefetch.HELD
            outcome = "host" if num_loaded else "prefetched" if was_prefetched else "gpu"
        self.counts.num_resumed_loaded += bool(num_loaded)
        self.meter.count("resumes", 1, outcome)
        self.meter.count("saved_tokens", num_saved)
        if num_lost:
            load = outlook.load
            self.meter.count("recomputed_tokens", num_lost)
            wasted = recompute_waste(num_lost, load.running_tokens, load.chunk_tokens, load.cost)
            self.meter.count("waste_token_seconds", wasted, "discard")

    def let_go(self, num_blocks: int, why: str) -> None:
        """Counts held blocks that had to go: for `running`, `waiting`, `quota`, `ttl`, `reset`."""
        if num_blocks:
            self.meter.count("reclaimed_blocks", num_blocks, why)

    def held(self, num_blocks: int, now_s: float) -> None:
        """Counts the time since the last call, in which `num_blocks` were held."""
        if self._last_s is not None and num_blocks:
            block_seconds = num_blocks * (now_s - self._last_s)
            self.counts.held_block_seconds += block_seconds
            self._unread_waste += block_seconds * self._block_tokens
        self._last_s = now_s

    def settle(self) -> None:
        """Puts on the meter what grows all the time, before it is read.

        Not as it grows: the meter would never be empty, and be read and sent after every step.
        """
        if self._unread_waste:
            self.meter.count("waste_token_seconds", self._unread_waste, "preserve")
            self._unread_waste = 0.0

    def gauges(
        self, holdings: Holdings, sessions: SessionTable, prefetcher: Prefetcher, outlook: Outlook
    ) -> dict[tuple[str, ...], float]:
        """Returns name and labels -> value; the time it takes does not grow with the sessions."""
        num_pinned, num_host = len(holdings.sessions), len(prefetcher.on_host)
        cost = outlook.step_cost.cost
        return {
            ("sessions", "pin"): num_pinned,
            ("sessions", "host"): num_host,
            ("sessions", "other"): max(0, len(sessions) - num_pinned - num_host),
            ("pinned_blocks",): holdings.num_blocks,
            ("memory_price",): outlook.price.value,
            ("cost_coeff", "fixed_s"): cost.fixed_s,
            ("cost_coeff", "per_token_s"): cost.per_token_s,
            ("cost_coeff", "per_context_token_s"): cost.per_context_token_s,
        }
