"""What is expected of paused sessions: when they come back, and what is at risk until then."""

from __future__ import annotations

import math
from collections import deque

from adaseek_vllm.retention.costs import ChurnRate
from adaseek_vllm.retention.durations import DurationModel, ElapsedEstimate, ReturnModel
from adaseek_vllm.retention.policy import PausedSession
from adaseek_vllm.retention.sessions import Session

__all__ = ["Estimator", "is_stale"]

# Looks back over about this many returns of sessions that were not held.
_LOST_WEIGHT = 1 / 20
# An estimate is renewed when the session has been away this much longer.
_RENEW_AFTER_S, _RENEW_AFTER_SHARE = 0.02, 0.1


class Estimator:
    """Learns from sessions that come back and from those that do not.

    Args:
        kind: `learned`, `elapsed` (InferCept's estimate) or `hint` (what clients say is true).
        patience_s: a session that is away longer counts as gone.
        block_tokens: tokens of a block.
    """

    def __init__(self, kind: str, *, patience_s: float, block_tokens: int) -> None:
        self.durations: DurationModel | ElapsedEstimate = (
            ElapsedEstimate() if kind == "elapsed" else DurationModel()
        )
        self.returns = ReturnModel()
        self.churn = ChurnRate()
        self.lost_share = 0.0
        self._trusts_hints = kind == "hint"
        self._patience_s = patience_s
        self._block_tokens = block_tokens
        self._awaited: deque[tuple[float, Session, int]] = deque()

    def paused(self, session: Session, now_s: float) -> None:
        """Records that a session's turn has ended."""
        self._awaited.append((now_s + self._patience_s, session, session.num_turns))

    def resumed(self, session: Session, now_s: float) -> None:
        """Learns from a session's return."""
        if session.paused_s is not None:
            self.durations.observe(session.tool, max(0.0, now_s - session.paused_s))
            self.returns.observe(session.kind, returned=True)

    def repeated(self, session: Session, share: float) -> None:
        """Learns which share of what a session held its next turn repeats."""
        session.survival_ratio += 0.5 * (share - session.survival_ratio)

    def found(self, session: Session, share: float) -> None:
        """Learns which share of a context that was not held was still there.

        While such contexts get lost, holding one more makes another be lost: `lost_share` is a
        price of memory, even if nobody has to wait for it.
        """
        lost = 1 - min(1.0, share / max(session.survival_ratio, 1e-3))
        self.lost_share += _LOST_WEIGHT * (lost - self.lost_share)

    def ended(self, session: Session) -> None:
        """Learns that a session is over."""
        self.returns.observe(session.kind, returned=False)

    def tick(self, now_s: float, *, num_new_blocks: int) -> None:
        """Learns how many blocks were taken, and which sessions are away for too long."""
        self.churn.observe(num_new_blocks, now_s=now_s)
        while self._awaited and self._awaited[0][0] <= now_s:
            _, session, turn = self._awaited.popleft()
            if session.num_turns == turn and session.paused_s is not None:
                self.ended(session)

    def expected_within_s(self, session: Session, now_s: float, limit_s: float) -> float:
        """Returns how long a session is expected to stay away, no longer than `limit_s` counted."""
        assert session.paused_s is not None, "a session that is back is not awaited"
        elapsed_s = now_s - session.paused_s
        if self._trusts_hints and session.hint_s is not None:
            return min(limit_s, max(0.0, session.hint_s - elapsed_s))
        away = self.durations.survival(session.tool, elapsed_s, limit_s, hint_s=session.hint_s)
        # The chance to be away still falls about evenly.
        return limit_s * (1 + away) / 2

    def view(
        self, session: Session, now_s: float, *, num_exclusive: int, num_free: int
    ) -> PausedSession:
        """Returns what a policy may know of a session.

        Args:
            session: the session.
            now_s: the time.
            num_exclusive: blocks that only it would hold.
            num_free: blocks in the free queue.
        """
        tokens = len(session.held) * self._block_tokens or session.context_tokens
        exclusive = num_exclusive * self._block_tokens
        is_held = bool(session.held)
        if session.paused_s is None:
            # Its next turn is queued: it is back.
            return PausedSession(tokens, exclusive, 0.0, 0.0, is_held=is_held)
        elapsed_s = now_s - session.paused_s
        horizon_s = self.churn.horizon_s(num_free)
        if self._trusts_hints and session.hint_s is not None:
            remaining_s, probability = max(0.0, session.hint_s - elapsed_s), 1.0
        else:
            tool, hint_s = session.tool, session.hint_s
            remaining_s = self.durations.mean_remaining_s(tool, elapsed_s, hint_s=hint_s)
            still_out = self.durations.survival(tool, 0.0, elapsed_s, hint_s=hint_s)
            probability = self.returns.probability(session.kind, still_out=still_out)
        return PausedSession(
            context_tokens=tokens,
            exclusive_tokens=exclusive,
            elapsed_s=elapsed_s,
            remaining_s=remaining_s,
            return_probability=probability,
            eviction_probability=_eviction_probability(remaining_s, horizon_s),
            survival_ratio=session.survival_ratio,
            is_held=is_held,
        )


def _eviction_probability(remaining_s: float, horizon_s: float) -> float:
    """Returns the chance that free blocks are reused within a time.

    Blocks are taken in bursts, a long prompt at once: the horizon is a mean, and even a short
    pause has its share of the risk.
    """
    if horizon_s <= 0:
        return 1.0
    return -math.expm1(-remaining_s / horizon_s)


def is_stale(estimated_s: float, view: PausedSession, now_s: float) -> bool:
    """Returns whether a view of a session should be renewed."""
    return now_s - estimated_s > _RENEW_AFTER_S + _RENEW_AFTER_SHARE * view.elapsed_s
