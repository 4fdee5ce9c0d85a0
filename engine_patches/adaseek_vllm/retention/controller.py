"""Holds, releases and reclaims the blocks of paused sessions. No vLLM; the clock is passed in.

The scheduler tells what happens to requests; the controller moves references to blocks through a
`BlockStore`. Everything held can be released at once, in any order: there is no other state to
wait for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from adaseek_vllm.retention.costs import AdmissionWait, MemoryPrice, StepCostModel
from adaseek_vllm.retention.estimates import Estimator, is_stale
from adaseek_vllm.retention.hints import Hints
from adaseek_vllm.retention.policies import make_policy
from adaseek_vllm.retention.policy import Action, Decision, EngineLoad, PausedSession
from adaseek_vllm.retention.sessions import Ledger, Session, SessionKey, SessionTable
from adaseek_vllm.retention.settings import RetentionSettings
from adaseek_vllm.retention.waste import StepCost

__all__ = ["BlockStore", "Counts", "EndedTurn", "Outcome", "Released", "RetentionController"]

# Steps may be shorter than what it is worth to look at sessions and prices for.
_TICK_S, _SESSIONS_PER_TICK = 0.02, 2
# Before the machine is known: a middling GPU. Decides only until thirty steps were seen.
_PRIOR_COST = StepCost(fixed_s=0.010, per_token_s=5e-5)


class BlockStore(Protocol):
    """The blocks of the prefix cache, by id."""

    def hold(self, blocks: Sequence[int]) -> None:
        """Adds a reference to each block; a free one leaves the free queue."""
        ...

    def release(self, blocks: Sequence[int]) -> None:
        """Takes a reference off each block; the last of them is to be reused first."""
        ...

    def num_free(self) -> int:
        """Returns the number of blocks in the free queue."""
        ...


@dataclass(frozen=True)
class EndedTurn:
    """A request that ended by itself, just before vLLM frees its blocks.

    Args:
        request_id: of the request.
        blocks: blocks that a longer prompt would hit, from the start of the context.
        context_tokens: tokens that they hold.
        num_prompt_blocks: how many of `blocks` hold the request's prompt.
        arrival_s: when the request arrived.
        tenant: see `SessionKey`; used if the request named no session.
        adapter: see `SessionKey`.
        calls_tool: whether the turn ended in a tool call, as far as one can see.
        tool: the tool's name; "" if unknown.
        hints: what the client told.
        fingerprint: hash of the last full block.
    """

    request_id: str
    blocks: Sequence[int]
    context_tokens: int
    num_prompt_blocks: int = 0
    arrival_s: float = 0.0
    tenant: str = ""
    adapter: str = ""
    calls_tool: bool = False
    tool: str = ""
    hints: Hints = field(default_factory=Hints)
    fingerprint: Hashable = None


@dataclass(frozen=True)
class Outcome:
    """What was done with an ended turn.

    Args:
        decision: the policy's; PIN may hold fewer blocks than the turn has, down to none.
        num_held: blocks held for the session.
        reuse_first: blocks whose data nobody is expected to want again.
        is_session: whether the turn belongs to a session.
        expires_s: when what is held is let go at the latest.
    """

    decision: Decision
    num_held: int = 0
    reuse_first: Sequence[int] = ()
    is_session: bool = True
    expires_s: float = 0.0


@dataclass(frozen=True)
class Released:
    """Blocks that a session gave to somebody who lacked memory."""

    session: Session
    blocks: list[int]


@dataclass
class Counts:
    """What has happened since the start."""

    decisions: dict[str, int] = field(default_factory=dict)
    num_resumed: int = 0
    num_resumed_held: int = 0
    num_reclaimed_blocks: int = 0
    num_diverged_blocks: int = 0
    num_expired: int = 0
    held_block_seconds: float = 0.0


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
    ) -> None:
        self.settings = settings
        self.policy = make_policy(settings)
        self.ledger = Ledger()
        self.sessions = SessionTable(settings.max_sessions)
        self.estimator = Estimator(
            settings.estimate, patience_s=settings.max_ttl_s, block_tokens=block_tokens
        )
        self.step_cost = StepCostModel(_PRIOR_COST)
        self.price = MemoryPrice()
        self.admission_wait = AdmissionWait()
        self.counts = Counts()
        self.max_held = int(settings.max_pinned_fraction * num_blocks)
        self.max_tenant = int(settings.tenant_fraction * num_blocks)
        self._blocks = blocks
        self._block_tokens = block_tokens
        self._now = now
        self._read_load = load
        self._load: EngineLoad | None = None
        self._holding: dict[SessionKey, Session] = {}
        self._by_request: dict[str, Session] = {}
        self._views: dict[SessionKey, tuple[float, PausedSession]] = {}
        self._was_short = False
        self._num_steps = self._num_short = self._num_new_tokens = 0
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
        """Records that a turn waits to be scheduled; returns its session's first arrival.

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
        if session.paused_s is not None:
            self._resume(session, request_id, hits)
        return session.first_arrival_s

    def admitted(self, request_id: str) -> None:
        """Records that a request runs: it holds its blocks itself now."""
        session = self._by_request.get(request_id)
        if session is not None and session.next_request == request_id:
            session.next_request = None
            wait_s = self._now() - session.queued_s
            self.admission_wait.observe(wait_s, was_held=bool(session.held))
            self._let_go(session, 0)

    def knows(self, request_id: str) -> bool:
        """Returns whether a request is a turn of a session, or counts as one."""
        return request_id in self._by_request or self.settings.session_fallback != "none"

    def ended(self, turn: EndedTurn) -> Outcome:
        """Decides for the session whose turn ended, and holds its blocks if that is wise."""
        session = self._by_request.pop(turn.request_id, None)
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
        decision, view = self._decide(session, turn)
        self._count(decision.action)
        reuse_first: Sequence[int] = ()
        if decision.action is Action.PIN:
            self._hold(session, turn.blocks, view)
        elif decision.action is Action.DROP:
            # The first prompt may be shared with sessions to come: it keeps its place.
            reuse_first = turn.blocks[session.num_first_blocks :]
        if turn.hints.is_final:
            self.estimator.ended(session)
            session.paused_s = None
            self.sessions.remove(session.key)
        return Outcome(decision, len(session.held), reuse_first, expires_s=session.expires_s)

    def cancelled(self, request_id: str) -> None:
        """Records that a request ended without an answer: its session holds nothing more."""
        session = self._by_request.pop(request_id, None)
        if session is not None and session.next_request in (None, request_id):
            session.next_request = None
            self._let_go(session, 0)

    # Memory.

    @property
    def num_held_blocks(self) -> int:
        """Different blocks that paused or queued sessions hold."""
        return self.ledger.num_blocks

    @property
    def holding(self) -> list[Session]:
        """The sessions that hold blocks."""
        return list(self._holding.values())

    def note_shortage(self) -> None:
        """Records that somebody lacked memory in this step."""
        self._was_short = True

    def reclaim(self, num_blocks: int, *, request_id: str, must: bool) -> Released | None:
        """Releases blocks of the session that is worth least; returns them, None if there are none.

        Args:
            num_blocks: blocks wanted; at least one is released.
            request_id: who wants them; what its own session holds is taken last.
            must: whether sessions that are worth holding must give, too.
        """
        own = self._by_request.get(request_id)
        victim = self._least_worth(own, must=must)
        if victim is None and must and own is not None and own.held:
            victim = own
        if victim is None:
            return None
        # The tail goes first: without the head of a context, its tail is never hit.
        taken = self._let_go(victim, max(0, len(victim.held) - max(1, num_blocks)))
        self.counts.num_reclaimed_blocks += len(taken)
        return Released(victim, taken)

    def restore(self, released: Sequence[Released]) -> None:
        """Holds again what `reclaim` released in vain; nobody may have taken a block since."""
        for given in reversed(released):
            self._take(given.session, given.blocks)
            self.counts.num_reclaimed_blocks -= len(given.blocks)

    def release_all(self) -> None:
        """Releases every block."""
        for session in self.holding:
            self._let_go(session, 0)

    def tick(self, *, num_new_tokens: int) -> list[int]:
        """Ends a step: lets expired sessions go, looks again at some, learns prices.

        Args:
            num_new_tokens: tokens that the step computes.

        Returns:
            Blocks whose data nobody is expected to want again.
        """
        self._load = None
        self._num_steps += 1
        self._num_short += self._was_short
        self._num_new_tokens += num_new_tokens
        self._was_short = False
        now_s = self._now()
        if now_s - self._last_tick_s < _TICK_S:
            return []
        self._learn(now_s)
        reuse_first: list[int] = []
        for session in list(itertools.islice(self._holding.values(), _SESSIONS_PER_TICK)):
            reuse_first += self._look_again(session, now_s)
        return reuse_first

    def _learn(self, now_s: float) -> None:
        """Takes into account the steps since the last call."""
        self.price.observe(self._num_short / self._num_steps, now_s=now_s)
        num_new_blocks = math.ceil(self._num_new_tokens / self._block_tokens)
        self.estimator.tick(now_s, num_new_blocks=num_new_blocks)
        if math.isfinite(self._last_tick_s):
            self.counts.held_block_seconds += self.num_held_blocks * (now_s - self._last_tick_s)
        self._num_steps = self._num_short = self._num_new_tokens = 0
        self._last_tick_s = now_s

    # Within.

    def _put(self, session: Session) -> None:
        for gone in self.sessions.put(session):
            self._let_go(gone, 0)

    def _resume(self, session: Session, request_id: str, hits: Callable[[], Sequence[int]]) -> None:
        self.estimator.resumed(session, self._now())
        self._views.pop(session.key, None)
        self.counts.num_resumed += 1
        self.counts.num_resumed_held += bool(session.held)
        session.paused_s = None
        session.next_request, session.queued_s = request_id, self._now()
        hit = set(hits())
        if not session.held:
            if session.num_context_blocks:
                self.estimator.found(session, len(hit) / session.num_context_blocks)
            return
        num_hit = next((i for i, b in enumerate(session.held) if b not in hit), len(session.held))
        self.estimator.repeated(session, num_hit / len(session.held))
        self.counts.num_diverged_blocks += len(session.held) - num_hit
        self._let_go(session, num_hit)

    def _pause(self, session: Session, turn: EndedTurn) -> None:
        self._let_go(session, 0)
        session.num_turns += 1
        if session.num_turns == 1:
            session.num_first_blocks = turn.num_prompt_blocks
        calls_tool = turn.calls_tool or bool(turn.tool)
        if session.kind != "anonymous" or calls_tool:
            session.kind = "tool" if calls_tool else "plain"
        session.tool = turn.tool
        session.hint_s = turn.hints.expect_s
        session.paused_s = self._now()
        session.context_tokens = turn.context_tokens
        session.num_context_blocks = len(turn.blocks)
        ttl_s = self.settings.max_ttl_s if turn.hints.ttl_s is None else turn.hints.ttl_s
        session.expires_s = session.paused_s + min(ttl_s, self.settings.max_ttl_s)
        self._put(session)
        self.sessions.mark(session, turn.fingerprint)
        self.estimator.paused(session, session.paused_s)

    def _decide(self, session: Session, turn: EndedTurn) -> tuple[Decision, PausedSession]:
        assert session.paused_s is not None, "a session is decided for when it pauses"
        view = self.estimator.view(
            session,
            session.paused_s,
            num_exclusive=self.ledger.num_exclusive(turn.blocks, held=False),
            num_free=self._blocks.num_free(),
        )
        if turn.hints.is_final:
            return Decision(Action.DROP), view
        is_short = turn.context_tokens < self.settings.min_pin_tokens
        if is_short or (self.settings.require_salt and not session.key.tenant):
            return Decision(Action.SOFT), view
        decision = self.policy.choose(view, self._current_load())
        if decision.max_hold_s is not None:
            session.expires_s = min(session.expires_s, session.paused_s + decision.max_hold_s)
        return decision, view

    def _look_again(self, session: Session, now_s: float) -> Sequence[int]:
        """Lets a session go if it is time; returns blocks to reuse first."""
        # Each is looked at in turn: those that stay go to the end of the line.
        self._holding[session.key] = self._holding.pop(session.key)
        if session.paused_s is None:
            return ()
        if now_s >= session.expires_s:
            self.counts.num_expired += 1
            self._let_go(session, 0)
            return ()
        action = self.policy.choose(self._view(session, now_s), self._current_load()).action
        if action is Action.PIN:
            return ()
        self._count(action)
        released = self._let_go(session, 0)
        return released[session.num_first_blocks :] if action is Action.DROP else ()

    def _least_worth(self, own: Session | None, *, must: bool) -> Session | None:
        """Returns who is worth least of those who hold blocks, `own` left out."""
        now_s, load = self._now(), self._current_load()
        values = [
            (self.policy.keep_value(self._view(session, now_s), load), index, session)
            for index, session in enumerate(self._holding.values())
            if session is not own
        ]
        if not values:
            return None
        value, _, session = min(values)
        return session if must or value < 0 else None

    def _view(self, session: Session, now_s: float) -> PausedSession:
        """Returns what a policy may know of a session that holds blocks; a little old at times."""
        known = self._views.get(session.key)
        if known is not None and not is_stale(known[0], known[1], now_s):
            return known[1]
        view = self.estimator.view(
            session,
            now_s,
            num_exclusive=self.ledger.num_exclusive(session.held),
            num_free=self._blocks.num_free(),
        )
        self._views[session.key] = (now_s, view)
        return view

    def _current_load(self) -> EngineLoad:
        if self._load is None:
            price = max(self.price.value, self.estimator.lost_share)
            load = self._read_load(price, self.step_cost.cost)
            self._load = replace(load, admission_wait_s=self.admission_wait.extra_s)
        return self._load

    def _hold(self, session: Session, blocks: Sequence[int], view: PausedSession) -> None:
        """Holds as much of the start of a context as the limits allow."""
        tenant = session.key.tenant
        # Sessions without a salt are not one tenant: only the common limit binds them.
        max_tenant = self.max_tenant if tenant else self.max_held
        allowed = self.ledger.fitting(
            tenant,
            blocks,
            max_blocks=self.ledger.num_blocks + self.max_held,
            max_tenant_blocks=max_tenant,
        )
        num_over = self.ledger.num_blocks + self.ledger.num_new(allowed) - self.max_held
        if num_over > 0:
            self._make_room(num_over, worth_more_than=view)
        fitting = self.ledger.fitting(
            tenant, allowed, max_blocks=self.max_held, max_tenant_blocks=max_tenant
        )
        if len(fitting) * self._block_tokens >= self.settings.min_pin_tokens:
            self._take(session, fitting)

    def _make_room(self, num_blocks: int, *, worth_more_than: PausedSession) -> None:
        """Lets sessions go that are worth less than a new one, until `num_blocks` are not held."""
        enough = self.ledger.num_blocks - num_blocks
        mine = self.policy.keep_value(worth_more_than, self._current_load())
        while self.ledger.num_blocks > enough:
            victim = self._least_worth(None, must=True)
            if victim is None:
                return
            theirs = self.policy.keep_value(self._view(victim, self._now()), self._current_load())
            if theirs >= mine:
                return
            num_over = self.ledger.num_blocks - enough
            self._let_go(victim, max(0, len(victim.held) - num_over))

    def _take(self, session: Session, blocks: list[int]) -> None:
        if not blocks:
            return
        self._blocks.hold(blocks)
        self.ledger.add(session.key.tenant, blocks)
        session.held = session.held + blocks
        self._holding[session.key] = session

    def _let_go(self, session: Session, num_kept: int) -> list[int]:
        """Releases all but the first `num_kept` blocks of a session; returns what it released."""
        released = session.held[num_kept:]
        if not released:
            return []
        session.held = session.held[:num_kept]
        self.ledger.remove(session.key.tenant, released)
        self._blocks.release(released)
        self._views.pop(session.key, None)
        if not session.held:
            self._holding.pop(session.key, None)
        return released

    def _count(self, action: Action) -> None:
        self.counts.decisions[action.value] = self.counts.decisions.get(action.value, 0) + 1
