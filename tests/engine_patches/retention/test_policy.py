"""The rule of least waste and the rules it is compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest
from adaseek_vllm.retention.host_costs import HostCost
from adaseek_vllm.retention.policies import make_policy
from adaseek_vllm.retention.policy import Action, EngineLoad, LeastWaste, PausedSession
from adaseek_vllm.retention.settings import POLICIES, RetentionSettings
from adaseek_vllm.retention.waste import StepCost
from hypothesis import given
from hypothesis import strategies as st

COST = StepCost(fixed_s=0.01, per_token_s=5e-5)
# Computing a context again costs its tokens about 5e-5 * 20000 = 1 second.
BUSY = EngineLoad(20_000, decode_tokens=50, step_tokens=512, memory_price=1.0, cost=COST)
IDLE = replace(BUSY, memory_price=0.0)
SESSION = PausedSession(context_tokens=1500, exclusive_tokens=1500, elapsed_s=0.0, remaining_s=0.3)

sessions = st.builds(
    PausedSession,
    context_tokens=st.integers(1, 100_000),
    exclusive_tokens=st.integers(0, 100_000),
    elapsed_s=st.floats(0, 1000),
    remaining_s=st.floats(0, 1000),
    return_probability=st.floats(0, 1),
    eviction_probability=st.floats(0, 1),
    survival_ratio=st.floats(0, 1),
    is_held=st.booleans(),
    copied_tokens=st.integers(0, 100_000),
    is_copying=st.booleans(),
)
loads = st.builds(
    EngineLoad,
    running_tokens=st.integers(0, 1_000_000),
    decode_tokens=st.integers(0, 1024),
    step_tokens=st.integers(1, 8192),
    memory_price=st.floats(0, 1),
    cost=st.just(COST),
    host=st.none() | st.builds(HostCost, out_s=st.floats(0, 1), in_s=st.floats(0, 1)),
)


def choose(session: PausedSession, load: EngineLoad) -> Action:
    return LeastWaste().choose(session, load).action


def test_short_pauses_are_held_and_long_ones_are_not() -> None:
    assert choose(SESSION, BUSY) is Action.PIN
    assert choose(replace(SESSION, remaining_s=20.0), BUSY) is Action.SOFT


def test_pause_at_the_break_even_point_decides() -> None:
    # 3 chunks of 462: own (0.04 + 0.075) / 2 = 0.0575 s, others 0.075 / 1500 * 20000 = 1 s.
    below, above = replace(SESSION, remaining_s=1.05), replace(SESSION, remaining_s=1.07)
    assert choose(below, BUSY) is Action.PIN
    assert choose(above, BUSY) is not Action.PIN
    assert choose(replace(above, is_held=True), BUSY) is Action.PIN


def test_idle_memory_is_free_so_any_risk_is_worth_holding_for() -> None:
    slow = replace(SESSION, remaining_s=60.0)
    assert choose(slow, IDLE) is Action.PIN
    assert choose(replace(slow, eviction_probability=0.0), IDLE) is Action.SOFT


def test_what_others_hold_too_costs_nothing_to_hold() -> None:
    shared = replace(SESSION, exclusive_tokens=100, remaining_s=10.0)
    assert choose(shared, BUSY) is Action.PIN
    assert choose(replace(shared, exclusive_tokens=1500), BUSY) is not Action.PIN


def test_context_that_a_next_turn_does_not_repeat_is_worth_less() -> None:
    session = replace(SESSION, remaining_s=0.8)
    assert choose(session, BUSY) is Action.PIN
    assert choose(replace(session, survival_ratio=0.3), BUSY) is not Action.PIN


def test_copy_to_host_memory_is_chosen_where_it_wastes_least() -> None:
    slow = replace(SESSION, remaining_s=20.0)
    # Out and back at 18 microseconds a token: 1500 tokens for 27 ms, twice.
    fast = replace(BUSY, host=HostCost(out_s=18e-6, in_s=18e-6))
    assert choose(slow, fast) is Action.HOST
    # Held for 20 ms it wastes less than copied, and with memory to spare nothing.
    assert choose(replace(SESSION, remaining_s=0.02), fast) is Action.PIN
    assert choose(slow, replace(fast, memory_price=0.0)) is Action.PIN
    # A link that takes longer than computing the context again is no use.
    assert choose(slow, replace(BUSY, host=HostCost(out_s=1e-2, in_s=1e-2))) is Action.SOFT
    # Nor is one with a long queue, unless the copy is there already.
    queued = replace(BUSY, host=HostCost(18e-6, 18e-6, queued_tokens=100_000))
    assert choose(slow, queued) is Action.SOFT
    assert choose(replace(slow, copied_tokens=1500), queued) is Action.HOST


def test_what_need_not_be_copied_back_costs_nothing_to_bring() -> None:
    likely, unlikely = (replace(SESSION, eviction_probability=chance) for chance in (1.0, 0.1))
    # Back takes as long as computing it again; out next to nothing.
    load = replace(BUSY, host=HostCost(out_s=1e-6, in_s=7.5e-4))
    assert choose(replace(likely, remaining_s=20.0), load) is Action.SOFT
    load = replace(load, host=HostCost(out_s=1e-6, in_s=6.5e-4))
    assert choose(replace(likely, remaining_s=20.0), load) is Action.HOST
    assert choose(replace(unlikely, remaining_s=20.0), load) is Action.HOST
    # Copying out has its price, which a small risk does not pay.
    load = replace(load, host=HostCost(out_s=1e-4, in_s=6.5e-4))
    assert choose(replace(unlikely, remaining_s=20.0), load) is Action.SOFT


def test_waiting_for_room_counts_no_more_than_computing_again() -> None:
    # 1.06 s a token without any queue: see the break-even point.
    session = replace(SESSION, remaining_s=1.5)
    assert choose(session, replace(BUSY, admission_wait_s=0.3)) is not Action.PIN
    assert choose(session, replace(BUSY, admission_wait_s=0.6)) is Action.PIN
    # Else those who hold make the others wait, and the longer these wait, the more is held.
    crowded = replace(BUSY, admission_wait_s=60.0)
    assert choose(replace(session, remaining_s=2.0), crowded) is Action.PIN
    assert choose(replace(session, remaining_s=2.2), crowded) is Action.SOFT


def test_who_is_being_copied_gives_memory_back_soon_enough() -> None:
    policy, load = LeastWaste(), replace(BUSY, host=HostCost(out_s=1e-4, in_s=1e-4))
    away = replace(SESSION, remaining_s=20.0)
    assert policy.keep_value(away, load) < 0
    # 1500 tokens in 0.15 s, half of them 0.075 s: worth more than 1.06 s a token.
    copying = replace(away, is_copying=True)
    assert policy.keep_value(copying, load) == pytest.approx(
        policy.keep_value(replace(away, remaining_s=0.15), load)
    )
    half = replace(copying, copied_tokens=750)
    assert policy.keep_value(half, load) > policy.keep_value(copying, load) > 0
    queued = replace(load, host=HostCost(1e-4, 1e-4, queued_tokens=100_000))
    assert policy.keep_value(copying, queued) < 0


def test_final_turn_is_dropped() -> None:
    assert choose(replace(SESSION, return_probability=0.0), IDLE) is Action.DROP


def test_when_memory_is_short_the_longest_absence_is_worth_least() -> None:
    policy = LeastWaste()
    pauses = [0.1, 0.5, 2.0, 30.0]
    values = [policy.keep_value(replace(SESSION, remaining_s=p), BUSY) for p in pauses]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0 > values[-1]


@given(session=sessions, load=loads, more_s=st.floats(0, 1000))
def test_a_longer_absence_never_makes_a_session_worth_more(
    session: PausedSession, load: EngineLoad, more_s: float
) -> None:
    policy = LeastWaste()
    longer = replace(session, remaining_s=session.remaining_s + more_s)
    assert policy.keep_value(longer, load) <= policy.keep_value(session, load)
    if choose(longer, load) is Action.PIN:
        assert choose(session, load) is Action.PIN


@given(session=sessions, load=loads)
def test_without_risk_nothing_is_held(session: PausedSession, load: EngineLoad) -> None:
    assert choose(replace(session, eviction_probability=0.0), load) is not Action.PIN


@given(session=sessions, load=loads, name=st.sampled_from(POLICIES))
def test_every_policy_decides_everything(
    session: PausedSession, load: EngineLoad, name: str
) -> None:
    policy = make_policy(RetentionSettings(policy=name, host_bytes=1))
    assert policy.choose(session, load).action in Action
    assert policy.keep_value(session, load) == policy.keep_value(session, load)  # no NaN


@pytest.mark.parametrize(
    ("name", "session", "expected"),
    [
        ("soft", SESSION, Action.SOFT),
        ("pin", replace(SESSION, remaining_s=900.0), Action.PIN),
        ("drop", SESSION, Action.DROP),
        ("host", SESSION, Action.HOST),
        ("heuristic", replace(SESSION, remaining_s=0.9), Action.PIN),
        ("heuristic", replace(SESSION, remaining_s=1.1), Action.SOFT),
        ("ttl", replace(SESSION, elapsed_s=9.9), Action.PIN),
        ("ttl", replace(SESSION, elapsed_s=10.0), Action.SOFT),
        ("infercept", SESSION, Action.PIN),
        ("infercept", replace(SESSION, remaining_s=20.0), Action.DROP),
    ],
)
def test_rules_to_compare_with(name: str, session: PausedSession, expected: Action) -> None:
    settings = RetentionSettings(policy=name, host_bytes=1)
    assert make_policy(settings).choose(session, BUSY).action is expected


def test_waiting_for_room_counts_for_each_token_that_needs_it() -> None:
    # The break-even pause of 1.0575 s, and half a second of queueing that holding spares.
    queued = replace(BUSY, admission_wait_s=0.5)
    below, above = replace(SESSION, remaining_s=1.55), replace(SESSION, remaining_s=1.57)
    assert choose(below, BUSY) is not Action.PIN
    assert choose(below, queued) is Action.PIN
    assert choose(above, queued) is not Action.PIN
    # What others hold too needs no room: only 150 of 1500 tokens wait, and only they cost memory.
    shared = replace(below, exclusive_tokens=150)
    saved = (
        LeastWaste().choose(shared, queued).lose_waste
        - LeastWaste().choose(shared, BUSY).lose_waste
    )
    assert saved == pytest.approx(0.5 * 150)


def test_literal_rule_discards_even_with_idle_memory() -> None:
    slow = replace(SESSION, remaining_s=20.0)
    policy = make_policy(RetentionSettings(policy="infercept"))
    assert policy.choose(slow, IDLE).action is Action.DROP
    assert choose(slow, IDLE) is Action.PIN
