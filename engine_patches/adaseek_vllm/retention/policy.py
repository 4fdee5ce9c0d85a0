"""Chooses what happens to a paused session's KV cache: the seam, and the rule of least waste.

Plain data in, plain data out: a policy holds no session and reads no clock.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Protocol

from adaseek_vllm.retention.host_costs import HostCost, host_waste
from adaseek_vllm.retention.waste import StepCost, recompute_waste

__all__ = ["Action", "Decision", "EngineLoad", "LeastWaste", "PausedSession", "Policy"]


class Action(enum.Enum):
    """What happens to a paused session's blocks on the GPU."""

    PIN = "pin"
    """Held: nobody takes them, unless memory is short."""
    HOST = "host"
    """Copied to host memory, held until that is done, and then free."""
    SOFT = "soft"
    """Free, with their data, in vLLM's own order of reuse."""
    DROP = "drop"
    """Free, and the first to be reused."""


@dataclass(frozen=True)
class PausedSession:
    """What a policy may know of a paused session.

    Args:
        context_tokens: tokens whose KV a next turn would find.
        exclusive_tokens: tokens of them that nobody else holds.
        elapsed_s: seconds since its turn ended.
        remaining_s: seconds until its next turn, as expected now.
        return_probability: chance of a next turn, as expected now.
        eviction_probability: chance that vLLM would reuse its blocks before the next turn.
        survival_ratio: share of its context that a next turn usually repeats.
        is_held: whether it is pinned now.
        copied_tokens: tokens of its context that have a copy in host memory.
        is_copying: whether the others are on their way there.
    """

    context_tokens: int
    exclusive_tokens: int
    elapsed_s: float
    remaining_s: float
    return_probability: float = 1.0
    eviction_probability: float = 1.0
    survival_ratio: float = 1.0
    is_held: bool = False
    copied_tokens: int = 0
    is_copying: bool = False

    @property
    def uncopied_tokens(self) -> int:
        """Tokens that leave the GPU for good unless they are copied first."""
        return max(0, self.context_tokens - self.copied_tokens)


@dataclass(frozen=True)
class EngineLoad:
    """What a policy may know of the engine.

    Args:
        running_tokens: tokens of the running requests' contexts.
        decode_tokens: tokens that the running requests compute in a step.
        step_tokens: tokens that a step may compute.
        memory_price: what a held token costs somebody else, from 0 (nothing) to 1: the share of
            recent steps in which memory was short, or of contexts that got lost for want of it.
        cost: time of a step.
        host: time of copies to host memory; None if there is no room for any.
        admission_wait_s: how much longer a turn queues if its context was let go.
    """

    running_tokens: int
    decode_tokens: int
    step_tokens: int
    memory_price: float
    cost: StepCost
    host: HostCost | None = None
    admission_wait_s: float = 0.0

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a context to compute again that fit in one step."""
        return max(1, self.step_tokens - self.decode_tokens)


@dataclass(frozen=True)
class Decision:
    """An action, with what the policy expected of keeping the context and of letting it go.

    Args:
        action: what to do.
        keep_waste: token-seconds of keeping it, at the price of memory.
        lose_waste: token-seconds of not keeping it.
        max_hold_s: the policy's own limit on holding it, beside the settings'.
    """

    action: Action
    keep_waste: float = 0.0
    lose_waste: float = 0.0
    max_hold_s: float | None = None


class Policy(Protocol):
    """Decides for one paused session, and how much one is worth holding when memory is short."""

    def choose(self, session: PausedSession, load: EngineLoad) -> Decision:
        """Returns what to do with a session that pauses, or has been paused for a while."""
        ...

    def keep_value(self, session: PausedSession, load: EngineLoad) -> float:
        """Returns waste saved per token by holding a session while somebody needs its memory.

        The lowest goes first. Below zero, a request that waits may have the memory at once;
        at zero or above it waits until it runs out of patience.
        """
        ...


@dataclass(frozen=True)
class LeastWaste:
    """Holds a context if that wastes less than the risk of computing it again.

    Source: the comparison of InferCept, with what it leaves out: memory costs nothing while
    nobody lacks it, blocks shared with others cost nothing, a context that vLLM would not
    have reused in time risks nothing, neither does a session that will not come back, and a
    context that was let go has to wait for room before it can be computed again. That wait
    counts no higher than the computing: with no limit, what is held makes others wait, and
    their waits make more be held.

    Args:
        hysteresis: a held session is let go only if holding wastes this much more.
        gone_probability: below this chance of a return, the context is dropped.
    """

    hysteresis: float = 0.15
    gone_probability: float = 0.02

    def choose(self, session: PausedSession, load: EngineLoad) -> Decision:
        if session.return_probability < self.gone_probability:
            return Decision(Action.DROP)
        keep = load.memory_price * session.exclusive_tokens * session.remaining_s
        lose = session.eviction_probability * self._loss(session, load)
        limit = lose * (1 + self.hysteresis) if session.is_held else lose
        if self._host_waste(session, load) < min(keep, limit):
            return Decision(Action.HOST, keep, lose)
        # Equal means that neither costs anything: leave it to vLLM. So is a context that would be
        # lost before its return: dropping those at once, so that others' outlast them, lost more
        # than it saved, as durations are guesses.
        return Decision(Action.PIN if keep < limit else Action.SOFT, keep, lose)

    def keep_value(self, session: PausedSession, load: EngineLoad) -> float:
        tokens = max(1, session.exclusive_tokens)
        return self._loss(session, load) / tokens - self._held_s(session, load)

    def _held_s(self, session: PausedSession, load: EngineLoad) -> float:
        """Seconds until a session gives its memory back by itself, as expected."""
        if not session.is_copying or load.host is None:
            return session.remaining_s
        return min(session.remaining_s, load.host.copied_in_s(session.uncopied_tokens))

    def _host_waste(self, session: PausedSession, load: EngineLoad) -> float:
        """Expected waste of copying the context to host memory and back."""
        if load.host is None:
            return math.inf
        return host_waste(
            session.context_tokens * session.survival_ratio,
            session.uncopied_tokens,
            load.host,
            memory_price=load.memory_price,
            # What is free and not reused when the turn comes need not be copied back.
            load_probability=session.return_probability * session.eviction_probability,
        )

    def _loss(self, session: PausedSession, load: EngineLoad) -> float:
        """Expected waste of queueing for room and computing again if its blocks are reused."""
        again = session.context_tokens * session.survival_ratio
        waste = recompute_waste(again, load.running_tokens, load.chunk_tokens, load.cost)
        # Room for what others hold as well is there already.
        queueing = load.admission_wait_s * session.exclusive_tokens * session.survival_ratio
        return session.return_probability * (waste + min(queueing, waste))
