"""Simple rules with the interface of the real one, to compare with."""

from __future__ import annotations

from dataclasses import dataclass

from adaseek_vllm.retention.policy import (
    Action,
    Decision,
    EngineLoad,
    LeastWaste,
    PausedSession,
    Policy,
)
from adaseek_vllm.retention.settings import RetentionSettings
from adaseek_vllm.retention.waste import infercept_discard_waste, preserve_waste

__all__ = ["Always", "FixedThreshold", "InferCeptRule", "TimeToLive", "make_policy"]


@dataclass(frozen=True)
class Always:
    """The same action for every session: preserve-only, swap-only, vLLM's own, or discard."""

    action: Action

    def choose(self, session: PausedSession, load: EngineLoad) -> Decision:
        return Decision(self.action)

    def keep_value(self, session: PausedSession, load: EngineLoad) -> float:
        """Returns more for a shorter absence: the longest away is let go first."""
        return 1 / (1 + session.elapsed_s)


@dataclass(frozen=True)
class FixedThreshold:
    """Holds a session if its tool is expected to take less than a fixed time.

    Source: InferCept's ablation calls it heuristic preserve: nearly all of the gain.
    """

    threshold_s: float

    def choose(self, session: PausedSession, load: EngineLoad) -> Decision:
        is_short = session.elapsed_s + session.remaining_s < self.threshold_s
        return Decision(Action.PIN if is_short else Action.SOFT)

    def keep_value(self, session: PausedSession, load: EngineLoad) -> float:
        return 1 / (1 + session.elapsed_s)


@dataclass(frozen=True)
class TimeToLive:
    """Holds every session for a fixed time.

    Source: the idea of Continuum (arXiv 2511.02230), without its choice of the time.
    """

    ttl_s: float

    def choose(self, session: PausedSession, load: EngineLoad) -> Decision:
        if session.elapsed_s >= self.ttl_s:
            return Decision(Action.SOFT)
        return Decision(Action.PIN, max_hold_s=self.ttl_s)

    def keep_value(self, session: PausedSession, load: EngineLoad) -> float:
        return 1 / (1 + session.elapsed_s)


@dataclass(frozen=True)
class InferCeptRule:
    """The rule of InferCept's released code, without swapping.

    Every session for which discarding wastes less is discarded, whether or not memory is short.
    With `remaining_s` from the client's hints it is their oracle; with the time elapsed, the
    paper's estimate.
    """

    def choose(self, session: PausedSession, load: EngineLoad) -> Decision:
        keep = preserve_waste(session.context_tokens, session.remaining_s)
        lose = infercept_discard_waste(
            session.context_tokens, load.running_tokens, load.decode_tokens, load.cost
        )
        return Decision(Action.DROP if lose < keep else Action.PIN, keep, lose)

    def keep_value(self, session: PausedSession, load: EngineLoad) -> float:
        decision = self.choose(session, load)
        return (decision.lose_waste - decision.keep_waste) / max(1, session.context_tokens)


def make_policy(settings: RetentionSettings) -> Policy:
    """Returns the policy that the settings name."""
    known: dict[str, Policy] = {
        "auto": LeastWaste(),
        "soft": Always(Action.SOFT),
        "pin": Always(Action.PIN),
        "host": Always(Action.HOST),
        "drop": Always(Action.DROP),
        "heuristic": FixedThreshold(settings.threshold_s),
        "ttl": TimeToLive(settings.ttl_s),
        "infercept": InferCeptRule(),
    }
    return known[settings.policy]
