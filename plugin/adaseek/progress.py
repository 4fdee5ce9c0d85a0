"""Shows a run as it goes: a live view in a terminal, few plain lines elsewhere.

What is shown is a pure function of a state, and the state a pure function of the events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from adaseek.events import (
    ArmHalved,
    Event,
    Phase,
    PhaseStarted,
    Progress,
    RunEnded,
    RunStarted,
    TrialEnded,
    TrialStarted,
)

__all__ = ["Best", "ProgressState", "advance", "plain_line", "progress_listener", "render"]

_LINE_EVERY_S = 10.0
_FEWEST_RUNS_FOR_ETA = 5
_PHASES: Mapping[Phase, str] = {
    "check": "checking models and settings",
    "baseline": "measuring the original program",
    "search": "searching",
    "validation": "validating the best on held-out examples",
    "latency": "timing the best alone",
    "done": "done",
}


@dataclass(frozen=True)
class Best:
    """The best value of one objective so far, and the trial that reached it."""

    value: float
    trial: int


@dataclass(frozen=True)
class ProgressState:
    """What the events so far tell.

    Attributes:
        plan: the run's first event.
        layer: layer of the latest trial, 0 is the outermost.
        trial: number of the latest trial.
        num_ended: layer -> trials that have ended.
        arms: layer -> numbers of the outer trials that are still searched.
        num_arms: layer -> outer trials opened so far.
        best: objective -> best among completed trials that keep the constraints.
        first_new_s: when the first run at the present pace that was not replayed was heard of.
        new_runs: runs since then, for the estimate of the time left.
        alone_s: what one run of the original takes.
        ended: the run's last event.
    """

    plan: RunStarted | None = None
    phase: Phase = "check"
    layer: int = 0
    trial: int | None = None
    num_ended: Mapping[int, int] = field(default_factory=dict)
    arms: Mapping[int, frozenset[int]] = field(default_factory=dict)
    num_arms: Mapping[int, int] = field(default_factory=dict)
    best: Mapping[str, Best] = field(default_factory=dict)
    num_runs: int = 0
    num_replayed: int = 0
    cost_usd: float | None = 0.0
    first_new_s: float | None = None
    new_runs: int = 0
    alone_s: float | None = None
    ended: RunEnded | None = None

    @property
    def innermost(self) -> int:
        """The layer whose trials run the workflow."""
        return len(self.plan.layers) - 1 if self.plan else 0

    def seconds_left(self, now_s: float) -> float | None:
        """Returns the time that the rest of the budget takes at the pace so far, None if unknown.

        Replayed runs take no time, so they do not count for the pace. Runs that are timed alone
        have a pace of their own.
        """
        if self.plan is None:
            return None
        left = max(0, self.plan.budget - self.num_runs)
        pace_s = self._pace_s(now_s)
        if self.phase == "latency":
            pace_s = pace_s or self.alone_s
            return None if pace_s is None else left * pace_s
        if pace_s is None:
            return None
        timed = min(left, self.plan.num_timed)
        return (left - timed) * pace_s + timed * (self.alone_s or pace_s)

    def _pace_s(self, now_s: float) -> float | None:
        if self.first_new_s is None or self.new_runs < _FEWEST_RUNS_FOR_ETA:
            return None
        return (now_s - self.first_new_s) / self.new_runs


def advance(state: ProgressState, event: Event, *, now_s: float) -> ProgressState:
    """Returns the state after `event`, heard at `now_s` on a monotonic clock."""
    match event:
        case RunStarted():
            return replace(state, plan=event)
        case PhaseStarted(phase="latency"):
            return replace(state, phase=event.phase, first_new_s=None, new_runs=0)
        case PhaseStarted():
            return replace(state, phase=event.phase)
        case TrialStarted():
            return _with_trial(state, event)
        case TrialEnded():
            return _with_result(state, event)
        case ArmHalved():
            alive = state.arms.get(event.layer, frozenset()) - (set(event.arms) - set(event.kept))
            return replace(state, arms={**state.arms, event.layer: alive})
        case Progress():
            return _with_progress(state, event, now_s)
        case RunEnded():
            # A batch that was broken off is not in the event's number, but its runs have ended.
            num_runs = max(state.num_runs, event.num_runs)
            return replace(state, ended=event, num_runs=num_runs, cost_usd=event.cost_usd)
        case _:
            return state


def _with_trial(state: ProgressState, event: TrialStarted) -> ProgressState:
    state = replace(state, layer=event.layer, trial=event.trial)
    if event.layer >= state.innermost:
        return state
    alive = state.arms.get(event.layer, frozenset()) | {event.trial}
    opened = state.num_arms.get(event.layer, 0) + 1
    return replace(
        state,
        arms={**state.arms, event.layer: alive},
        num_arms={**state.num_arms, event.layer: opened},
    )


def _with_result(state: ProgressState, event: TrialEnded) -> ProgressState:
    ended = state.num_ended.get(event.layer, 0) + (not event.again)
    state = replace(state, num_ended={**state.num_ended, event.layer: ended})
    # An outer trial ends with the values of its best inner one, which has been counted.
    if event.state != "complete" or event.layer < state.innermost:
        return state
    if event.trial == 0:
        state = replace(state, alone_s=event.latency_s)
    best = dict(state.best)
    found = {"quality": event.quality, "cost": event.cost_usd, "latency": event.latency_s}
    for objective, value in found.items():
        sign = -1.0 if objective == "quality" else 1.0
        so_far = best.get(objective)
        if value is not None and (so_far is None or sign * value < sign * so_far.value):
            best[objective] = Best(value, event.trial)
    return replace(state, best=best)


def _with_progress(state: ProgressState, event: Progress, now_s: float) -> ProgressState:
    known = state.num_runs - state.num_replayed
    fresh = max(0, event.num_runs - event.num_replayed - known)
    started_s = now_s if state.first_new_s is None and fresh else state.first_new_s
    return replace(
        state,
        num_runs=event.num_runs,
        num_replayed=event.num_replayed,
        cost_usd=event.cost_usd,
        first_new_s=started_s,
        # The first ones only start the clock: how long they took is not known.
        new_runs=state.new_runs + (0 if state.first_new_s is None else fresh),
    )


def render(state: ProgressState, *, now_s: float) -> RenderableType:
    """Returns the live view: a bar of runs, where the search is, and the best so far."""
    head = Text.assemble(("AdaSeek ", "bold"), _where(state))
    if state.plan is None:
        return head
    bar = Table.grid(padding=(0, 2))
    done = ProgressBar(total=state.plan.budget, completed=state.num_runs, width=30)
    bar.add_row(done, _spent(state), _time_left(state, now_s))
    return Group(head, bar, Text(_search(state)), Text(_best(state)))


def plain_line(state: ProgressState, *, now_s: float) -> str:
    """Returns the same as one line of text, for logs."""
    parts = [_where(state)]
    if state.plan is not None:
        parts += [_spent(state), _search(state), _best(state), _time_left(state, now_s)]
    return "adaseek: " + "; ".join(part for part in parts if part)


def _where(state: ProgressState) -> str:
    return f"ended: {state.ended.reason}" if state.ended else _PHASES[state.phase]


def _spent(state: ProgressState) -> str:
    budget = state.plan.budget if state.plan else 0
    cost = "cost unknown" if state.cost_usd is None else _money(state.cost_usd)
    replayed = f" ({state.num_replayed} replayed)" if state.num_replayed else ""
    return f"{state.num_runs} of {budget} runs{replayed}, {cost}"


def _search(state: ProgressState) -> str:
    if state.plan is None or state.trial is None or state.phase != "search":
        return ""
    num_layers = len(state.plan.layers)
    parts = [f"layer {state.layer + 1} of {num_layers}", f"trial {state.trial}"]
    parts += [
        f"arms of layer {layer + 1}: {len(state.arms[layer])} of {state.num_arms[layer]} alive"
        for layer in sorted(state.num_arms)
    ]
    return ", ".join(parts)


def _best(state: ProgressState) -> str:
    shapes: Mapping[str, tuple[str, Callable[[float], str]]] = {
        "quality": ("quality", lambda value: f"{value:.3f}"),
        "cost": ("cost", _money),
        "latency": ("latency", lambda value: f"{value:.2f} s"),
    }
    parts = [
        f"{label} {shape(state.best[name].value)} (trial {state.best[name].trial})"
        for name, (label, shape) in shapes.items()
        if name in state.best
    ]
    return f"best so far: {', '.join(parts)}" if parts else ""


def _time_left(state: ProgressState, now_s: float) -> str:
    seconds = None if state.ended else state.seconds_left(now_s)
    return "" if seconds is None else f"at most {_duration(seconds)} left"


def _money(usd: float) -> str:
    return f"${usd:.2f}" if usd >= 1 or usd == 0 else f"${usd:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def progress_listener(
    *,
    enabled: bool = True,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[Event], None]]:
    """Yields a function to be told the run's events, which shows them until the context ends.

    Args:
        enabled: False shows nothing.
        console: where to show; standard error by default, as results belong to standard output.
        clock: seconds, for tests.
    """
    screen = console or Console(stderr=True)
    if not enabled:
        yield lambda event: None
    elif screen.is_terminal and not screen.is_dumb_terminal:
        view = _View(clock)
        with Live(get_renderable=view.show, console=screen, refresh_per_second=4):
            yield view.hear
    else:
        yield _Lines(screen, clock).hear


class _View:
    """The state behind a live view; `show` is called from the view's own thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._state = ProgressState()

    def hear(self, event: Event) -> None:
        self._state = advance(self._state, event, now_s=self._clock())

    def show(self) -> RenderableType:
        return render(self._state, now_s=self._clock())


class _Lines:
    """Prints a line when a phase begins or the run ends, and every ten seconds between."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._state = ProgressState()
        self._printed_s = float("-inf")

    def hear(self, event: Event) -> None:
        now_s = self._clock()
        self._state = advance(self._state, event, now_s=now_s)
        is_due = self._state.plan is not None and now_s - self._printed_s >= _LINE_EVERY_S
        if isinstance(event, PhaseStarted | RunEnded) or is_due:
            self._printed_s = now_s
            line = plain_line(self._state, now_s=now_s)
            # No markup, colour or wrapping: lines are for logs.
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
