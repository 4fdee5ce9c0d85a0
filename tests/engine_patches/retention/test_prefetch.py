"""What comes back from host memory ahead of its turn: when it pays, never in anyone's way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from adaseek_vllm.retention.estimates import Estimator
from adaseek_vllm.retention.holdings import Holdings
from adaseek_vllm.retention.host_costs import HostCost
from adaseek_vllm.retention.outlook import Outlook
from adaseek_vllm.retention.policy import EngineLoad
from adaseek_vllm.retention.prefetch import Prefetcher
from adaseek_vllm.retention.sessions import Prefetch, Session, SessionKey
from adaseek_vllm.retention.waste import StepCost, prefetch_gain

BLOCK = 16


class Blocks:
    """A pool of 40 blocks; those from 100 on were taken by copies."""

    def __init__(self) -> None:
        self.free = 40
        self.held: list[int] = []

    def hold(self, blocks: Sequence[int]) -> None:
        self.held += blocks

    def release(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.held.remove(block)

    def num_free(self) -> int:
        return self.free


class Returns:
    """Host memory with ten blocks of every context, the first two of which are on the GPU."""

    def __init__(self) -> None:
        self.there, self.num_copies = [1, 2], 8
        self.begun: list[tuple[SessionKey, int, int]] = []
        self.ended: list[tuple[SessionKey, bool]] = []
        self.published: list[tuple[int, list[int]]] = []
        self.given_back: list[int] = []

    def lacking(self, context: object) -> tuple[list[int], int]:
        return list(self.there), self.num_copies

    def begin(self, session: SessionKey, context: object, first: int, num_blocks: int) -> list[int]:
        self.begun.append((session, first, num_blocks))
        return list(range(100, 100 + num_blocks))

    def take_ended(self) -> list[tuple[SessionKey, bool]]:
        ended, self.ended = self.ended, []
        return ended

    def publish(self, context: object, first: int, blocks: Sequence[int]) -> None:
        self.published.append((first, list(blocks)))

    def give_back(self, blocks: Sequence[int]) -> None:
        self.given_back += blocks


class Scene:
    """One session whose context of 160 tokens is in host memory, a second a block away.

    Args:
        memory_price: see `EngineLoad`.
        expect_s: when its turn comes, for certain.
        in_s: seconds to copy a token back.
    """

    def __init__(
        self,
        *,
        memory_price: float = 0.0,
        expect_s: float = 1.0,
        in_s: float = 0.01,
        max_in_flight: int = 8,
        max_blocks: int = 30,
    ) -> None:
        self.blocks, self.returns, self.outcomes = Blocks(), Returns(), list[str]()
        self.load = EngineLoad(
            running_tokens=500,
            decode_tokens=4,
            step_tokens=64,
            memory_price=memory_price,
            cost=StepCost(0.01, 1e-4),
            host=HostCost(out_s=in_s, in_s=in_s),
        )
        self.holdings = Holdings(self.blocks, max_blocks=max_blocks, max_tenant_blocks=9)
        estimator = Estimator("hint", patience_s=100.0, block_tokens=BLOCK)
        outlook = Outlook(
            estimator,
            self.holdings,
            None,
            block_tokens=BLOCK,
            read_load=lambda price, cost: self.load,
        )
        self.prefetcher = Prefetcher(
            self.holdings,
            outlook,
            self.returns,
            self.outcomes.append,
            max_in_flight=max_in_flight,
            block_tokens=BLOCK,
        )
        self.session = self.away("s", expect_s)

    def away(self, name: str, expect_s: float, *, tenant: str = "") -> Session:
        """Returns a session that paused at 0, and whose context has left the GPU."""
        session = Session(SessionKey(tenant, "", name), first_arrival_s=0.0)
        session.paused_s, session.hint_s, session.expires_s = 0.0, expect_s, 60.0
        session.context, session.context_tokens = "tokens", 10 * BLOCK
        self.prefetcher.left(session)
        return session

    def come_back(self, *, is_good: bool = True) -> None:
        self.returns.ended.append((self.session.key, is_good))
        self.prefetcher.take_ended()

    def let_go(self, num_kept: int = 0) -> None:
        self.prefetcher.let_go(self.session, num_kept)
        self.holdings.let_go(self.session, num_kept)


def test_gain_is_the_wait_saved_less_the_memory_held() -> None:
    gain = prefetch_gain(100, saved_s=0.2, held_s=0.5, return_probability=0.9, memory_price=0.3)
    assert gain == pytest.approx(100 * (0.9 * 0.2 - 0.3 * 0.5))


@pytest.mark.parametrize(
    ("memory_price", "now_s", "begins"),
    [
        # Eight blocks take 1.28 s to copy. Idle memory costs nothing, however early.
        (0.0, 0.0, True),
        # With 10 s to go, 1.28 s are saved, 0.2 of 10 s paid for; with 5 s to go it pays.
        (0.2, 0.0, False),
        (0.2, 5.0, True),
        # Memory that everybody wants is never worth more to who is still away.
        (1.0, 9.5, False),
        # Overdue: there is nothing to expect it by.
        (0.0, 10.0, False),
    ],
)
def test_context_comes_back_when_that_pays(memory_price: float, now_s: float, begins: bool) -> None:
    scene = Scene(memory_price=memory_price, expect_s=10.0)
    scene.prefetcher.look(now_s)
    assert bool(scene.returns.begun) is begins
    assert scene.prefetcher.num_in_flight == (8 if begins else 0)


def test_what_is_back_is_held_behind_what_never_left() -> None:
    scene = Scene()
    scene.prefetcher.look(0.0)
    assert scene.returns.begun == [(scene.session.key, 2, 8)]
    assert scene.session.held == [1, 2]
    assert scene.prefetcher.is_coming(scene.session)
    scene.come_back()
    assert scene.returns.published == [(2, list(range(100, 108)))]
    assert scene.session.held == [1, 2, *range(100, 108)]
    # The session has references of its own.
    assert scene.returns.given_back == list(range(100, 108))
    assert scene.session.key not in scene.prefetcher.on_host
    scene.prefetcher.resumed(scene.session)
    assert scene.outcomes == ["hit"]


@pytest.mark.parametrize("is_short", [False, True])
def test_turn_that_comes_during_the_copy_is_late(is_short: bool) -> None:
    scene = Scene()
    scene.prefetcher.look(0.0)
    scene.prefetcher.resumed(scene.session)
    scene.session.paused_s, scene.session.next_request = None, "next"
    assert scene.prefetcher.is_coming(scene.session)
    if is_short:
        scene.prefetcher.cancel_all()
    scene.come_back()
    assert len(scene.session.held) == (2 if is_short else 10)
    assert scene.outcomes == ["late"]


@pytest.mark.parametrize("what", ["short", "lost", "failed"])
def test_copy_that_is_not_wanted_any_more_gives_its_blocks_back(what: str) -> None:
    scene = Scene()
    scene.prefetcher.look(0.0)
    if what == "short":
        scene.prefetcher.cancel_all()
    elif what == "lost":
        # Somebody took a block that it stands on.
        scene.let_go(1)
    assert scene.prefetcher.is_coming(scene.session) is (what == "failed")
    # Until the copy ends nobody else may have them.
    assert scene.prefetcher.num_in_flight == 8
    scene.come_back(is_good=what != "failed")
    assert scene.prefetcher.num_in_flight == 0
    assert scene.returns.published == []
    assert scene.returns.given_back == list(range(100, 108))
    assert scene.outcomes == ["wasted"]
    # Once in a pause is enough.
    scene.let_go()
    scene.prefetcher.look(0.1)
    assert len(scene.returns.begun) == 1


def test_session_begun_anew_does_not_get_its_namesakes_copy() -> None:
    scene = Scene()
    scene.returns.there = []
    scene.prefetcher.look(0.0)
    scene.prefetcher.forget(scene.session)
    scene.prefetcher.let_go(scene.session, 0)
    again = scene.away("s", 1.0)
    scene.prefetcher.look(0.1)
    assert not scene.prefetcher.is_coming(again)
    scene.come_back()
    assert again.held == scene.session.held == []


def test_held_until_it_does_not_pay_and_back_to_host_memory_then() -> None:
    scene = Scene(expect_s=2.0)
    scene.prefetcher.look(0.0)
    scene.come_back()
    assert scene.prefetcher.is_worth_holding(scene.session, 1.0)
    # Overdue: the estimate was wrong.
    assert not scene.prefetcher.is_worth_holding(scene.session, 3.0)
    scene.let_go()
    assert scene.session.prefetch is Prefetch.SPENT
    assert scene.outcomes == ["wasted"]
    assert scene.session.key in scene.prefetcher.on_host


@pytest.mark.parametrize("free", [17, 18])
def test_room_for_whatever_a_step_can_want_is_left(free: int) -> None:
    # Four requests generate, and 64 tokens of prompts fill four blocks; it takes ten.
    scene = Scene()
    scene.blocks.free = free
    scene.prefetcher.look(0.0)
    assert bool(scene.returns.begun) is (free >= 18)


def test_limits_on_what_is_held_hold_on_the_way() -> None:
    scene = Scene(max_blocks=9)
    scene.prefetcher.look(0.0)
    assert scene.returns.begun == []
    scene = Scene(max_in_flight=15)
    scene.away("other", 1.0)
    scene.prefetcher.look(0.0)
    # The second would be sixteen in flight.
    assert len(scene.returns.begun) == 1
    scene = Scene(max_in_flight=7)
    scene.prefetcher.look(0.0)
    assert scene.returns.begun == [(scene.session.key, 2, 7)]


def test_tenants_limit_holds_on_the_way() -> None:
    scene = Scene()
    scene.prefetcher.forget(scene.session)
    scene.away("s", 1.0, tenant="a")
    scene.prefetcher.look(0.0)
    assert scene.returns.begun == []


def test_tokens_are_kept_only_while_they_may_be_wanted() -> None:
    scene = Scene()
    scene.returns.there, scene.returns.num_copies = [], 0
    scene.prefetcher.look(0.0)
    # Its copies gave way to others.
    assert scene.session.context is None
    scene = Scene(memory_price=1.0)
    scene.prefetcher.look(61.0)
    assert scene.session.context is None
