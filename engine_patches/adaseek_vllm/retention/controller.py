"""Holds, releases and reclaims the blocks of paused sessions. No vLLM; the clock is passed in.

The scheduler tells what happens to requests; the controller moves references to blocks through a
`BlockStore`. Everything held can be released at once, in any order: there is no other state to
wait for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from adaseek_vllm.retention.accounts import Accounts
from adaseek_vllm.retention.estimates import Estimator
from adaseek_vllm.retention.holdings import BlockStore, Holdings, HostCopies
from adaseek_vllm.retention.keeper import Keeper
from adaseek_vllm.retention.metrics import Meter
from adaseek_vllm.retention.outlook import Outlook
from adaseek_vllm.retention.policies import make_policy
from adaseek_vllm.retention.policy import Action, Decision, EngineLoad, PausedSession
from adaseek_vllm.retention.prefetch import HostReturns, Prefetcher
from adaseek_vllm.retention.sessions import Prefetch, Session, SessionKey, SessionTable
from adaseek_vllm.retention.settings import RetentionSettings
from adaseek_vllm.retention.turn_order import queue_time
from adaseek_vllm.retention.turns import Counts, EndedTurn, Outcome, Released
from adaseek_vllm.retention.waste import StepCost

__all__ = ["RetentionController"]

# A look at a session costs tens of microseconds: one now and then, not every step. Whoever lacks
# memory looks at all of them at once.
_TICK_S = 0.02


class RetentionController:
    """Decides for paused sessions and moves their blocks' references.

    Args:
        settings: checked settings.
        blocks: the prefix cache's blocks.
        num_blocks: blocks of the pool, for the limits that are shares of it.
        block_tokens: tokens of a block.
        now: returns the time in seconds; only differences count.
        load: returns the engine's load from the price of memory and the cost of a step; called
            at most once a step.
        meter: counts what is done, for whoever reads it.
        host: copies in host memory; None if there is no room for any.
        returns: brings them back ahead of their turns; None to leave them until they are wanted.
    """

    def __init__(
        self,
        settings: RetentionSettings,
        blocks: BlockStore,
        *,
        num_blocks: int,
        block_tokens: int,
        now: Callable[[], float],
        load: Callable[[float, StepCost], EngineLoad],
        meter: Meter | None = None,
        host: HostCopies | None = None,
        returns: HostReturns | None = None,
    ) -> None:
        self.settings = settings
        self.policy = make_policy(settings)
        self.holdings = Holdings(
            blocks,
            max_blocks=int(settings.max_pinned_fraction * num_blocks),
            max_tenant_blocks=int(settings.tenant_fraction * num_blocks),
        )
        self.sessions = SessionTable(settings.max_sessions)
        self.estimator = Estimator(
            settings.estimate, patience_s=settings.max_ttl_s, block_tokens=block_tokens
        )
        self.outlook = Outlook(
            self.estimator, self.holdings, host, block_tokens=block_tokens, read_load=load
        )
        self.accounts = Accounts(meter or Meter(), block_tokens=block_tokens)
        self.prefetcher = Prefetcher(
            self.holdings,
            self.outlook,
            returns,
            self.accounts.prefetched,
            max_in_flight=int(settings.inflight_fraction * num_blocks),
            block_tokens=block_tokens,
        )
        self._keeper = Keeper(
            self.policy,
            self.holdings,
            self.outlook,
            self.accounts,
            self.prefetcher,
            host,
            min_blocks=settings.min_pin_tokens / block_tokens,
            now=now,
        )
        self._host = host
        self._now = now
        self._by_request: dict[str, Session] = {}
        # Turns of paused sessions that run, but have no token yet: when they arrived.
        self._unanswered: dict[str, float] = {}
        self._was_short = False
        self._last_tick_s = -math.inf

    # What happens to requests.

    def arrived(
        self,
        request_id: str,
        key: SessionKey | None,
        *,
        arrival_s: float,
        fingerprints: Callable[[], Sequence[Hashable]] = tuple,
        hits: Callable[[], Sequence[int]] = tuple,
    ) -> float:
        """Records that a turn waits to be scheduled; returns its time in the queue (`queue_time`).

        What the session holds stays held until the turn is admitted, so that it survives the
        queue; what the turn would not hit is released now.

        Args:
            request_id: of the turn.
            key: its session; None if it names none.
            arrival_s: when it arrived, on the clock that orders requests.
            fingerprints: returns hashes of its full blocks, the last one first.
            hits: returns the blocks that it would hit, from the start.
        """
        if key is not None:
            session = self.sessions.get(key) or Session(key, first_arrival_s=arrival_s)
            self._put(session)
        elif self.settings.session_fallback == "prefix":
            found = self.sessions.find(fingerprints())
            if found is None:
                return arrival_s
            session = found
        else:
            return arrival_s
        self._by_request[request_id] = session
        is_next = session.paused_s is not None
        return queue_time(
            self.settings.order,
            arrival_s,
            first_arrival_s=session.first_arrival_s,
            context_share=self._resume(session, request_id, hits) if is_next else 0.0,
        )

    def admitted(
        self, request_id: str, *, num_cached_tokens: int = 0, num_loaded_tokens: int = 0
    ) -> None:
        """Records that a request runs: it holds its blocks itself now.

        Args:
            request_id: of the request.
            num_cached_tokens: tokens of its prompt that need not be computed.
            num_loaded_tokens: tokens of them that were copied back from host memory.
        """
        session = self._by_request.get(request_id)
        if session is not None and session.next_request == request_id:
            self._unanswered[request_id] = session.queued_s
            session.next_request = None
            wait_s = self._now() - session.queued_s
            self.outlook.admission_wait.observe(wait_s, was_held=bool(session.held))
            self.accounts.admitted(
                session,
                num_cached=num_cached_tokens,
                num_loaded=num_loaded_tokens,
                outlook=self.outlook,
            )
            self._keeper.let_go(session, 0)

    @property
    def unanswered(self) -> list[str]:
        """Turns of paused sessions that run and have no token yet, as far as is known."""
        return list(self._unanswered)

    def answered(self, request_id: str) -> None:
        """Records that a request has its first token."""
        if (queued_s := self._unanswered.pop(request_id, None)) is not None:
            self.accounts.answered(queued_s, self._now())

    def knows(self, request_id: str) -> bool:
        """Returns whether a request is a turn of a session, or counts as one."""
        return request_id in self._by_request or self.settings.session_fallback != "none"

    def ended(self, turn: EndedTurn) -> Outcome:
        """Decides for the session whose turn ended, and holds its blocks if that is wise."""
        session = self._by_request.pop(turn.request_id, None)
        self.answered(turn.request_id)
        if session is None:
            if not self.knows(turn.request_id):
                return Outcome(Decision(Action.SOFT), is_session=False)
            key = SessionKey(turn.tenant, turn.adapter, f"request {turn.request_id}")
            session = Session(key, first_arrival_s=turn.arrival_s, kind="anonymous")
        # It may have been pushed out of the table and begun anew while the turn ran.
        session = self.sessions.get(session.key) or session
        if session.next_request is not None:
            # Another turn of the session already waits for what it holds.
            return Outcome(Decision(Action.SOFT), num_held=len(session.held))
        self._pause(session, turn)
        decision, view, reason = self._decide(session, turn)
        self.accounts.decided(decision.action, reason)
        reuse_first: Sequence[int] = ()
        if decision.action in (Action.PIN, Action.HOST):
            self._keeper.hold(session, turn.blocks, view)
            if decision.action is Action.HOST and self._host is not None and session.held:
                self._host.copy_out(session.key, session.held)
        elif decision.action is Action.DROP:
            # The first prompt may be shared with sessions to come: it keeps its place.
            reuse_first = turn.blocks[session.num_first_blocks :]
        if not session.held:
            session.context = None
        if turn.hints.is_final:
            self.estimator.ended(session)
            session.paused_s = None
            self.sessions.remove(session.key)
            self.prefetcher.forget(session)
            if self._host is not None:
                # The first prompt may be shared with sessions to come.
                self._host.forget(turn.blocks[session.num_first_blocks :])
        return Outcome(decision, len(session.held), reuse_first, expires_s=session.expires_s)

    def cancelled(self, request_id: str) -> None:
        """Records that a request ended without an answer: its session holds nothing more."""
        session = self._by_request.pop(request_id, None)
        self._unanswered.pop(request_id, None)
        if session is not None and session.next_request in (None, request_id):
            session.next_request = None
            self._keeper.let_go(session, 0)

    def copied(self, key: SessionKey) -> None:
        """Records that all a session holds has a copy in host memory: it need not hold it."""
        session = self.sessions.get(key)
        if session is None or session.paused_s is None or not session.held:
            return
        self.accounts.counts.num_copied_out += 1
        self.prefetcher.left(session)
        self._keeper.let_go(session, 0)

    def is_awaited(self, request_id: str) -> bool:
        """Returns whether a turn that waits should wait for its context, which is on its way."""
        session = self._by_request.get(request_id)
        return (
            session is not None
            and session.next_request == request_id
            and self.prefetcher.is_coming(session)
        )

    # Memory.

    @property
    def num_held_blocks(self) -> int:
        """Different blocks that paused or queued sessions hold."""
        return self.holdings.num_blocks

    @property
    def counts(self) -> Counts:
        """What has happened since the start."""
        return self.accounts.counts

    def gauges(self) -> dict[tuple[str, ...], float]:
        """Returns the state of things for `/metrics`, by name and labels."""
        return self.accounts.gauges(self.holdings, self.sessions, self.prefetcher, self.outlook)

    @property
    def holding(self) -> list[Session]:
        """The sessions that hold blocks."""
        return self.holdings.sessions

    def note_shortage(self) -> None:
        """Records that somebody lacked memory in this step."""
        self._was_short = True
        self.prefetcher.cancel_all()

    def reclaim(self, num_blocks: int, *, request_id: str, must: bool) -> Released | None:
        """Releases blocks for a request that lacks memory; see `Keeper.reclaim`."""
        return self._keeper.reclaim(num_blocks, self._by_request.get(request_id), must=must)

    def restore(self, released: Sequence[Released]) -> None:
        """Holds again what `reclaim` released in vain; nobody may have taken a block since."""
        self._keeper.restore(released)

    def release(self, tenant: str, name: str) -> tuple[int, list[int]]:
        """Ends the paused sessions of a name, as no turn of theirs follows.

        Returns:
            How many blocks they held, and those whose data nobody is expected to want again.
        """
        num_released, reuse_first = 0, []
        for session in self.sessions:
            is_meant = session.key.tenant == tenant and session.key.name == name
            if not is_meant or session.paused_s is None:
                continue
            released = self._keeper.let_go(session, 0)
            self.estimator.ended(session)
            session.paused_s = None
            self.sessions.remove(session.key)
            self.prefetcher.forget(session)
            own = released[session.num_first_blocks :]
            if self._host is not None:
                self._host.forget(own)
            num_released += len(released)
            reuse_first += own
        return num_released, reuse_first

    def release_all(self) -> None:
        """Releases every block, and forgets every copy: what they hold may be wrong from now on."""
        self.prefetcher.cancel_all()
        for session in self.holding:
            self.accounts.let_go(len(self._keeper.let_go(session, 0)), "reset")
        if self._host is not None:
            self._host.clear()
        for session in list(self.prefetcher.on_host.values()):
            self.prefetcher.forget(session)

    def tick(self, *, num_new_tokens: int) -> list[int]:
        """Ends a step: lets expired sessions go, looks again at some, learns prices.

        Args:
            num_new_tokens: tokens that the step computes.

        Returns:
            Blocks whose data nobody is expected to want again.
        """
        was_short, self._was_short = self._was_short, False
        self.outlook.next_step(num_new_tokens, was_short=was_short)
        now_s = self._now()
        if now_s - self._last_tick_s < _TICK_S:
            return []
        self._last_tick_s = now_s
        self.outlook.learn(now_s)
        self.accounts.held(self.num_held_blocks, now_s)
        if not was_short:
            self.prefetcher.look(now_s)
        session = self.holdings.next_to_look_at
        return list(self._keeper.look_again(session, now_s)) if session is not None else []

    # Within.

    def _put(self, session: Session) -> None:
        for gone in self.sessions.put(session):
            self._keeper.let_go(gone, 0)
            self.prefetcher.forget(gone)

    def _resume(
        self, session: Session, request_id: str, hits: Callable[[], Sequence[int]]
    ) -> float:
        """Returns the share of the session's context that its next turn finds on the GPU."""
        now_s = self._now()
        self.estimator.resumed(session, now_s)
        self.accounts.returned(session, now_s)
        self.prefetcher.resumed(session)
        self.outlook.forget(session)
        session.paused_s = None
        session.next_request, session.queued_s = request_id, now_s
        hit = set(hits())
        share = min(1.0, len(hit) / max(1, session.num_context_blocks))
        if not session.held:
            if session.num_context_blocks:
                self.estimator.found(session, share)
            return share
        num_hit = next((i for i, b in enumerate(session.held) if b not in hit), len(session.held))
        self.estimator.repeated(session, num_hit / len(session.held))
        self.accounts.repeated(num_hit, len(session.held))
        self._keeper.let_go(session, num_hit)
        return share

    def _pause(self, session: Session, turn: EndedTurn) -> None:
        self._keeper.let_go(session, 0)
        self.prefetcher.forget(session)
        session.num_turns += 1
        if session.num_turns == 1:
            session.num_first_blocks = turn.num_prompt_blocks
        calls_tool = turn.calls_tool or bool(turn.tool)
        if session.kind != "anonymous" or calls_tool:
            session.kind = "tool" if calls_tool else "plain"
        session.tool = turn.tool
        session.hint_s = turn.hints.expect_s
        session.paused_s = self._now()
        session.context, session.prefetch = turn.context, Prefetch.NOT
        session.context_tokens = turn.context_tokens
        session.num_context_blocks = len(turn.blocks)
        ttl_s = self.settings.max_ttl_s if turn.hints.ttl_s is None else turn.hints.ttl_s
        session.expires_s = session.paused_s + min(ttl_s, self.settings.max_ttl_s)
        self._put(session)
        self.sessions.mark(session, turn.fingerprint)
        self.estimator.paused(session, session.paused_s)

    def _decide(self, session: Session, turn: EndedTurn) -> tuple[Decision, PausedSession, str]:
        """Returns what to do, the view that it is for, and whose rule it is."""
        assert session.paused_s is not None, "a session is decided for when it pauses"
        view = self.outlook.of_pausing(session, turn.blocks, session.paused_s)
        session.expected_s = view.remaining_s
        if turn.hints.is_final:
            return Decision(Action.DROP), view, "final"
        is_short = turn.context_tokens < self.settings.min_pin_tokens
        if is_short or (self.settings.require_salt and not session.key.tenant):
            return Decision(Action.SOFT), view, "limit"
        decision = self.policy.choose(view, self.outlook.load)
        if decision.max_hold_s is not None:
            session.expires_s = min(session.expires_s, session.paused_s + decision.max_hold_s)
        return decision, view, "model"
