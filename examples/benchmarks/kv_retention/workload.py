"""Sessions of the benchmark: InferCept's trace, and a parametric mix fitted to the paper's table.

A workload is scaled by dimensionless groups: `tokens` divides every length and the pool, `time`
multiplies every pause. What a policy weighs (a pause over the time to compute the context again,
the pool over a context) then stays what it was on the paper's machine.
"""

from __future__ import annotations

import csv
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MIXES",
    "Arrival",
    "Scale",
    "Session",
    "Turn",
    "arrivals",
    "mean_context",
    "read_trace",
    "sample",
    "with_one_shots",
]

TRACE = Path(__file__).parent / "data" / "infercept_sessions.csv"
MAX_CONTEXT = 8000


@dataclass(frozen=True)
class Turn:
    """One request of a session, and the tool that it calls; the last turn calls none."""

    new_tokens: int
    completion_tokens: int
    tool_s: float


@dataclass(frozen=True)
class Session:
    """What one agent does."""

    kind: str
    turns: tuple[Turn, ...]

    @property
    def num_output_tokens(self) -> int:
        return sum(turn.completion_tokens for turn in self.turns)


@dataclass(frozen=True)
class Arrival:
    """A session and when it starts; `index` names it and seeds its tokens."""

    index: int
    at_s: float
    session: Session


@dataclass(frozen=True)
class Scale:
    """How much smaller a workload is than the paper's.

    Args:
        tokens: real tokens that one token stands for.
        time: seconds of a pause for one second in the trace.
    """

    tokens: float = 1.0
    time: float = 1.0

    def apply(self, session: Session) -> Session:
        """Returns the session with shorter texts and pauses; no turn loses its last token."""
        return Session(
            session.kind,
            tuple(
                Turn(
                    max(1, round(turn.new_tokens / self.tokens)),
                    max(1, round(turn.completion_tokens / self.tokens)),
                    turn.tool_s * self.time,
                )
                for turn in session.turns
            ),
        )


@dataclass(frozen=True)
class _Kind:
    """One row of the paper's table 1: means and standard deviations; texts as in its trace."""

    name: str
    pause_s: tuple[float, float]
    calls: tuple[float, float]
    context: tuple[float, float]
    completion: float
    answer: float


_TABLE = (
    _Kind("math", (9e-5, 6e-5), (3.75, 1.3), (1422, 738), 126, 21),
    _Kind("qa", (0.69, 0.17), (2.52, 1.73), (1846, 428), 182, 57),
    _Kind("embodied", (0.09, 0.014), (28.18, 15.2), (2185, 115), 4, 10),
    _Kind("chat", (28.6, 15.6), (4.45, 1.96), (753, 703), 113, 40),
    _Kind("image", (20.03, 7.8), (6.91, 3.93), (1247, 792), 37, 24),
    _Kind("speech", (17.24, 7.6), (6.91, 3.93), (1251, 792), 32, 24),
)


def read_trace(path: Path = TRACE) -> list[Session]:
    """Returns the sessions of the trace's digest."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sessions = []
    for _, group in itertools.groupby(rows, key=lambda row: row["session"]):
        turns = list(group)
        texts = [(int(row["new_tokens"]), int(row["completion_tokens"])) for row in turns]
        pauses = [float(row["tool_seconds"] or 0.0) for row in turns]
        made = (
            Turn(max(1, new), max(1, out), s) for (new, out), s in zip(texts, pauses, strict=True)
        )
        sessions.append(Session(turns[0]["kind"], tuple(made)))
    return sessions


def draw_table(rng: random.Random) -> Session:
    """Returns a session drawn from the paper's table, each of the six kinds as likely."""
    kind = rng.choice(_TABLE)
    num_calls = max(1, round(_lognormal(rng, *kind.calls)))
    growth = kind.completion + kind.answer
    # The table gives the mean context of a call; half of the session's growth lies before it.
    context = _lognormal(rng, *kind.context)
    prompt = max(32.0, context - kind.completion - (num_calls - 1) / 2 * growth)
    prompt = min(prompt, MAX_CONTEXT - (num_calls + 2) * growth)
    turns = []
    for call in range(num_calls + 1):
        new = prompt if call == 0 else rng.expovariate(1 / kind.answer)
        # An exponential length: the trace's deviation is about its mean.
        out = min(rng.expovariate(1 / kind.completion), 4 * kind.completion)
        pause_s = _lognormal(rng, *kind.pause_s) if call < num_calls else 0.0
        turns.append(Turn(max(1, round(new)), max(1, round(out)), pause_s))
    return Session(kind.name, tuple(turns))


def _lognormal(rng: random.Random, mean: float, deviation: float) -> float:
    variance = math.log(1 + (deviation / mean) ** 2)
    return rng.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))


def _draw_trace() -> Callable[[random.Random], Session]:
    sessions = read_trace()
    return lambda rng: rng.choice(sessions)


MIXES: dict[str, Callable[[], Callable[[random.Random], Session]]] = {
    "trace": _draw_trace,
    "table": lambda: draw_table,
}
"""How each mix draws a session: the authors' trace drawn uniformly, or the table's law."""


def arrivals(
    mix: str, *, rate: float, window_s: float, seed: int, scale: Scale
) -> Iterator[Arrival]:
    """Yields the sessions of a Poisson process in the order of their arrival.

    Args:
        mix: a key of `MIXES`.
        rate: sessions a second; infinite for all at once, as many as are asked for.
        window_s: no session arrives later.
        seed: the same for every arm.
        scale: applied to each session.
    """
    rng, now_s, draw = random.Random(f"{mix} {seed}"), 0.0, MIXES[mix]()
    for index in itertools.count():
        if math.isfinite(rate):
            now_s += rng.expovariate(rate)
        if now_s > window_s:
            return
        yield Arrival(index, now_s, scale.apply(draw(rng)))


@functools.cache
def sample(mix: str) -> Sequence[Session]:
    """Returns sessions of a mix, for its means."""
    drawn = arrivals(mix, rate=math.inf, window_s=math.inf, seed=0, scale=Scale())
    return tuple(arrival.session for arrival in itertools.islice(drawn, 2000))


def with_one_shots(
    agents: Sequence[Arrival], *, per_agent: float, seed: int, scale: Scale
) -> list[Arrival]:
    """Returns the agents with requests of others among them, who come once and call no tool.

    Args:
        agents: in the order of their arrival.
        per_agent: requests of others for one session.
        seed: of their lengths and times.
        scale: applied to each.
    """
    if not agents or per_agent <= 0:
        return list(agents)
    rng, end_s = random.Random(f"one-shot {seed}"), agents[-1].at_s
    others = []
    for index in range(round(per_agent * len(agents))):
        prompt = min(4000, round(_lognormal(rng, 600, 500)))
        length = min(1000, round(_lognormal(rng, 120, 100)))
        session = Session("one-shot", (Turn(max(1, prompt), max(1, length), 0.0),))
        # Numbered apart from the agents, whose tokens then do not depend on them.
        others.append(Arrival(1_000_000 + index, rng.uniform(0, end_s), scale.apply(session)))
    return sorted([*agents, *others], key=lambda arrival: arrival.at_s)


def mean_context(sessions: Sequence[Session]) -> float:
    """Returns the mean number of tokens of a context when its tool is called."""
    contexts = []
    for session in sessions:
        tokens = 0
        for turn in session.turns[:-1]:
            tokens += turn.new_tokens + turn.completion_tokens
            contexts.append(tokens)
    return sum(contexts) / max(1, len(contexts))
