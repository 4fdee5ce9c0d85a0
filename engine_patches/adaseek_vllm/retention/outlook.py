"""What a policy is shown of sessions and of the engine; a little old at times, to be cheap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from adaseek_vllm.retention.costs import AdmissionWait, MemoryPrice, StepCostModel
from adaseek_vllm.retention.estimates import Estimator, is_stale
from adaseek_vllm.retention.holdings import Holdings, HostCopies
from adaseek_vllm.retention.policy import EngineLoad, PausedSession
from adaseek_vllm.retention.sessions import Session, SessionKey
from adaseek_vllm.retention.waste import StepCost, prefetch_gain

__all__ = ["Outlook"]

# Before the machine is known: a middling GPU. Decides only until thirty steps were seen.
_PRIOR_COST = StepCost(fixed_s=0.010, per_token_s=5e-5)


class Outlook:
    """Views of paused sessions and of the engine's load.

    Args:
        estimator: what is expected of sessions.
        holdings: who holds which blocks.
        host: copies in host memory; None if there is no room for any.
        block_tokens: tokens of a block.
        read_load: returns the engine's load; called at most once a step.
    """

    def __init__(
        self,
        estimator: Estimator,
        holdings: Holdings,
        host: HostCopies | None,
        *,
        block_tokens: int,
        read_load: Callable[[float, StepCost], EngineLoad],
    ) -> None:
        self.step_cost = StepCostModel(_PRIOR_COST)
        self.price = MemoryPrice()
        self.admission_wait = AdmissionWait()
        self._num_steps = self._num_short = self._num_new_tokens = 0
        self._estimator = estimator
        self._holdings = holdings
        self._host = host
        self._block_tokens = block_tokens
        self._read_load = read_load
        self._load: EngineLoad | None = None
        self._views: dict[SessionKey, tuple[float, PausedSession]] = {}

    @property
    def load(self) -> EngineLoad:
        """The engine's load, as it was when first asked for in this step."""
        if self._load is None:
            price = max(self.price.value, self._estimator.lost_share)
            load = self._read_load(price, self.step_cost.cost)
            if extra_s := self.admission_wait.extra_s:
                load = replace(load, admission_wait_s=extra_s)
            self._load = load
        return self._load

    def next_step(self, num_new_tokens: int, *, was_short: bool) -> None:
        """Begins a step that computes so many tokens: the load is read anew when somebody asks."""
        self._load = None
        self._num_steps += 1
        self._num_short += was_short
        self._num_new_tokens += num_new_tokens

    def learn(self, now_s: float) -> None:
        """Learns from the steps since the last call who lacked memory and who took it."""
        self.price.observe(self._num_short / max(1, self._num_steps), now_s=now_s)
        num_new_blocks = math.ceil(self._num_new_tokens / self._block_tokens)
        self._estimator.tick(now_s, num_new_blocks=num_new_blocks)
        self._num_steps = self._num_short = self._num_new_tokens = 0

    def of(self, session: Session, now_s: float) -> PausedSession:
        """Returns the view of a session that holds blocks."""
        known = self._views.get(session.key)
        if known is not None and not is_stale(known[0], known[1], now_s):
            return known[1]
        view = self._view(session, session.held, now_s, is_held=True)
        self._views[session.key] = (now_s, view)
        return view

    def of_pausing(self, session: Session, blocks: Sequence[int], now_s: float) -> PausedSession:
        """Returns the view of a session that might hold `blocks`."""
        return self._view(session, blocks, now_s, is_held=False)

    def prefetch_gain(
        self, session: Session, num_tokens: int, now_s: float, *, hysteresis: float = 0.0
    ) -> float:
        """Returns what copying tokens of a session's context back now would gain.

        Args:
            session: is paused.
            num_tokens: tokens to copy, or that were copied.
            now_s: the time.
            hysteresis: memory is taken to cost that share less.
        """
        load = self.load
        if load.host is None:
            return -math.inf
        view = self.of_pausing(session, (), now_s)
        copy_s = num_tokens * load.host.in_s
        return prefetch_gain(
            num_tokens,
            saved_s=self._estimator.expected_within_s(session, now_s, copy_s),
            held_s=view.remaining_s,
            return_probability=view.return_probability,
            memory_price=load.memory_price / (1 + hysteresis),
        )

    def forget(self, session: Session) -> None:
        """Records that a session is not what it was."""
        self._views.pop(session.key, None)

    def _view(
        self, session: Session, blocks: Sequence[int], now_s: float, *, is_held: bool
    ) -> PausedSession:
        view = self._estimator.view(
            session,
            now_s,
            num_exclusive=self._holdings.ledger.num_exclusive(blocks, held=is_held),
            num_free=self._holdings.num_free(),
        )
        if self._host is None:
            return view
        return replace(
            view,
            copied_tokens=self._host.num_copied(blocks) * self._block_tokens,
            is_copying=self._host.is_copying(session.key),
        )
