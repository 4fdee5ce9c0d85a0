from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import pytest
from adaseek.events import (
    ArmHalved,
    Event,
    OptionsAdded,
    PhaseStarted,
    Progress,
    RunEnded,
    RunStarted,
    TrialEnded,
    TrialStarted,
)
from adaseek.progress import (
    Best,
    ProgressState,
    advance,
    plain_line,
    progress_listener,
    render,
)
from rich.console import Console

PLAN = RunStarted(
    budget=400,
    layers=(("a:ensemble",), ("a:model", "b:model"), ("a:few_shot",)),
    layer_budgets=(4, 4, 8),
    objectives=("quality", "cost", "latency"),
    num_train=40,
    num_val=20,
)


def ended(trial: int, quality: float, *, layer: int = 2, state: str = "complete") -> TrialEnded:
    return TrialEnded(
        trial, layer, (1,), {}, quality, 0.001 * trial, 10.0 - trial, 40, state  # type: ignore[arg-type]
    )  # fmt: skip


def after(events: Sequence[Event], *, every_s: float = 1.0) -> ProgressState:
    numbered = enumerate(events)
    return reduce(lambda s, e: advance(s, e[1], now_s=e[0] * every_s), numbered, ProgressState())


def text_of(state: ProgressState, now_s: float = 100.0) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(render(state, now_s=now_s))
    return capture.get()


SEARCH = (
    PLAN,
    PhaseStarted("search", 300),
    TrialStarted(1, 0, (), {}),
    TrialStarted(2, 0, (), {}),
    TrialStarted(3, 1, (1,), {}),
    TrialStarted(4, 1, (1,), {}),
    TrialStarted(5, 2, (1, 3), {}),
    ended(5, 0.5),
    TrialStarted(6, 2, (1, 3), {}),
    ended(6, 0.8),
    OptionsAdded("a:few_shot", ("added-0",)),
)


def test_runs_of_an_unfinished_batch_are_not_taken_back_at_the_end():
    state = after([PLAN, Progress(60, 0, 0.1), RunEnded("interrupted", 48, 0.1)])
    assert state.num_runs == 60


def test_best_values_come_from_completed_innermost_trials_only() -> None:
    unfit = [ended(7, 0.99, state=s) for s in ("eliminated", "infeasible", "failed", "duplicate")]
    state = after([*SEARCH, *unfit, ended(8, 0.95, layer=1)])
    assert state.best == {
        "quality": Best(0.8, 6),
        "cost": Best(0.005, 5),
        "latency": Best(4.0, 6),
    }


def test_first_trial_with_a_value_keeps_it_on_a_tie() -> None:
    state = after([PLAN, ended(5, 0.5), ended(6, 0.5)])
    assert state.best["quality"] == Best(0.5, 5)


def test_unknown_objectives_are_not_best() -> None:
    unknown = TrialEnded(5, 2, (), {}, 0.5, None, None, 40, "complete")
    assert set(after([PLAN, unknown]).best) == {"quality"}


def test_halving_leaves_the_kept_arms_alive() -> None:
    state = after([*SEARCH, ArmHalved(0, 0, (1, 2), (2,), 50)])
    assert state.arms == {0: {2}, 1: {3, 4}}
    assert state.num_arms == {0: 2, 1: 2}


def test_time_left_counts_new_runs_only() -> None:
    state = advance(ProgressState(), PLAN, now_s=0.0)
    state = advance(state, Progress(100, 100, 0.0), now_s=1.0)
    assert state.seconds_left(2.0) is None
    state = advance(state, Progress(101, 100, 0.1), now_s=10.0)
    assert state.seconds_left(11.0) is None
    state = advance(state, Progress(111, 100, 0.1), now_s=30.0)
    # Ten runs in the twenty seconds since the first new one was heard of; 289 are left.
    assert state.seconds_left(30.0) == pytest.approx(289 * 2.0)


def test_runs_that_are_timed_alone_have_a_pace_of_their_own() -> None:
    plan = replace(PLAN, budget=40, num_timed=10)
    original = TrialEnded(0, 2, (), {}, 0.5, 0.1, 12.0, 10, "complete")
    state = after([plan, original])
    for count, heard_s in ((10, 10.0), (20, 20.0)):
        state = advance(state, Progress(count, 0, 0.1), now_s=heard_s)
    # Ten of the twenty that are left run side by side, one a second; then ten alone, of 12 s each.
    assert state.seconds_left(20.0) == pytest.approx(10 * 1.0 + 10 * 12.0)
    state = advance(state, Progress(30, 0, 0.1), now_s=30.0)
    state = advance(state, PhaseStarted("latency", 10), now_s=30.0)
    assert state.seconds_left(30.0) == pytest.approx(10 * 12.0)
    for count in range(31, 37):
        state = advance(state, Progress(count, 0, 0.1), now_s=40.0 + 8.0 * (count - 31))
    assert state.seconds_left(80.0) == pytest.approx(4 * 8.0)


def test_time_left_is_never_negative() -> None:
    state = after([PLAN, Progress(1, 0, 0.0), Progress(500, 0, 0.0)])
    assert state.seconds_left(10.0) == 0.0


def test_live_view_shows_where_the_search_is_and_what_it_found() -> None:
    spent = [Progress(20, 12, 0.4), Progress(52, 12, 0.4213)]
    shown = text_of(after([*SEARCH, ArmHalved(0, 0, (1, 2), (2,), 50), *spent]), now_s=44.0)
    assert "searching" in shown
    assert "52 of 400 runs (12 replayed), $0.421" in shown
    assert "layer 3 of 3, trial 6" in shown
    assert "arms of layer 1: 1 of 2 alive, arms of layer 2: 2 of 2 alive" in shown
    assert "quality 0.800 (trial 6), cost $0.005 (trial 5), latency 4.00 s (trial 6)" in shown
    # 32 runs in the 32 s since the first new one, 348 are left.
    assert "at most 5 min 48 s left" in shown


def test_view_before_the_plan_says_what_is_being_done() -> None:
    assert text_of(ProgressState()).strip() == "AdaSeek checking models and settings"


def test_unknown_cost_is_said_to_be_unknown() -> None:
    assert "cost unknown" in text_of(after([PLAN, Progress(1, 0, None)]))


def test_plain_line_says_the_same_in_one_line() -> None:
    line = plain_line(after([*SEARCH, RunEnded("budget", 400, 1.5)]), now_s=1.0)
    assert "\n" not in line
    assert line.startswith("adaseek: ended: budget; 400 of 400 runs, $1.50; ")
    assert "best so far: quality 0.800 (trial 6)" in line
    assert "left" not in line


def listen_to(events: Sequence[tuple[float, Event]], **options: bool) -> str:
    now = [0.0]
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=options.pop("terminal", False))
    with progress_listener(console=console, clock=lambda: now[0], **options) as hear:
        for now_s, event in events:
            now[0] = now_s
            hear(event)
    return file.getvalue()


def test_outside_a_terminal_lines_come_by_phase_and_every_ten_seconds() -> None:
    events: list[tuple[float, Event]] = [
        (0.0, PhaseStarted("check", 0)),
        (0.5, PLAN),
        (1.0, PhaseStarted("search", 300)),
        *((1.0 + i * 0.1, Progress(i, 0, 0.0)) for i in range(1, 250)),
        (26.5, RunEnded("converged", 249, 0.0)),
    ]
    lines = listen_to(events).splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "adaseek: checking models and settings",
        "adaseek: searching",
        "adaseek: searching",
        "adaseek: searching",
        "adaseek: ended: converged",
    ]
    assert "100 of 400 runs" in lines[2]
    assert "\x1b" not in "".join(lines)


def test_in_a_terminal_the_last_view_stays() -> None:
    shown = listen_to([(0.0, PLAN), (1.0, RunEnded("budget", 400, 2.0))], terminal=True)
    assert "ended: budget" in shown
    assert "\x1b[" in shown


def test_disabled_listener_shows_nothing() -> None:
    assert listen_to([(0.0, PLAN), (1.0, RunEnded("budget", 4, 0.0))], enabled=False) == ""


def test_two_listeners_do_not_see_each_other() -> None:
    first, second = io.StringIO(), io.StringIO()
    with (
        progress_listener(console=Console(file=first)) as hear_first,
        progress_listener(console=Console(file=second)) as hear_second,
    ):
        hear_first(PhaseStarted("search", 1))
        hear_second(PhaseStarted("latency", 1))
    assert "searching" in first.getvalue()
    assert "searching" not in second.getvalue()
