"""Plays sessions against an engine, real or pretended, and measures what became of them."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from workload import Arrival, Session

__all__ = ["Arm", "Client", "Played", "Player", "Record", "Run", "play", "play_in_turn"]


@dataclass(frozen=True)
class Arm:
    """One engine to compare.

    Args:
        name: its row in the table.
        settings: of `--kv-retention`; None for stock vLLM.
        prefix_caching: vLLM's.
        arrival_order: whether a turn queues by its session's first arrival without retention.
        is_told: whether clients say how long their tools will take, and which turn is the last.
        host_pools: host memory for copies of contexts, in sizes of the KV cache.
    """

    name: str
    settings: Mapping[str, object] | None = None
    prefix_caching: bool = True
    arrival_order: bool = False
    is_told: bool = False
    host_pools: float = 0.0

    def settings_with(self, num_blocks: int, block_bytes: int) -> Mapping[str, object] | None:
        """Returns the settings for a KV cache of `num_blocks`, whose copies take so many bytes."""
        if self.settings is None or not self.host_pools:
            return self.settings
        return {**self.settings, "host_bytes": round(self.host_pools * num_blocks) * block_bytes}


class Record(Protocol):
    """What is known of a request; times are the client's."""

    @property
    def prompt(self) -> Sequence[int]: ...
    @property
    def output(self) -> Sequence[int]: ...
    @property
    def submitted_s(self) -> float: ...
    @property
    def first_token_s(self) -> float | None: ...
    @property
    def finished_s(self) -> float | None: ...


class Client(Protocol):
    """An engine that runs step by step in this process."""

    @property
    def now_s(self) -> float: ...
    @property
    def is_busy(self) -> bool: ...
    @property
    def scheduler(self) -> Any: ...
    @property
    def vocabulary(self) -> int: ...

    def submit(
        self,
        name: str,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        session: str | None,
        first_arrival_s: float,
        hints: Mapping[str, object],
    ) -> Record: ...

    def step(self) -> list[str]:
        """Runs a step; returns the names of the requests that ended."""
        ...

    def wait_until(self, at_s: float) -> None:
        """Lets time pass while nothing runs."""
        ...


@dataclass
class Played:
    """One session as it was played."""

    arrival: Arrival
    context: list[int] = field(default_factory=list)
    turn: int = 0
    tool_s: float = 0.0
    resume_ttft_s: list[float] = field(default_factory=list)
    first_ttft_s: float | None = None
    finished_s: float | None = None
    outputs: list[Sequence[int]] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)

    @property
    def session(self) -> Session:
        return self.arrival.session

    def latency(self, end_s: float) -> float:
        """Returns seconds without tools over output tokens; what it was so far if not finished."""
        until_s = end_s if self.finished_s is None else self.finished_s
        return max(0.0, until_s - self.arrival.at_s - self.tool_s) / self.session.num_output_tokens


@dataclass
class Waste:
    """Token-seconds of memory that made no token, by cause."""

    preserve: float = 0.0
    recompute: float = 0.0
    idle: float = 0.0


@dataclass
class Run:
    """What one arm did with one workload.

    Args:
        sessions: in the order of their arrival.
        end_s: when it was stopped.
        num_needed: tokens that had to be computed at least.
        num_waiting: turns that waited for their first step when it was stopped.
        waste: see `Waste`, over the whole run.
    """

    sessions: list[Played]
    end_s: float = 0.0
    num_needed: int = 0
    num_waiting: int = 0
    waste: Waste = field(default_factory=Waste)


def play(client: Client, arm: Arm, arriving: Iterable[Arrival], *, stop_s: float, seed: int) -> Run:
    """Plays sessions that arrive by themselves against one engine; see `Player`."""
    (run,) = play_in_turn([Player(client, arm, arriving, stop_s=stop_s, seed=seed)])
    return run


def play_in_turn(players: Sequence[Player]) -> list[Run]:
    """Plays for several engines, a step of one after a step of another; returns their runs.

    The one whose clock is behind goes first. With clocks that run while their own engine does,
    all engines meet what the machine is like at about the same of their times.
    """
    left = list(players)
    while left:
        player = min(left, key=lambda one: one.now_s)
        if not player.advance():
            left.remove(player)
    return [player.end() for player in players]


class Player:
    """Plays sessions against one engine.

    Args:
        client: an engine that nobody else uses.
        arm: what its users do.
        arriving: sessions in the order of their arrival, on the client's clock from 0.
        stop_s: sessions that are not finished by then stay unfinished.
        seed: of their tokens.
        supply: of sessions that follow one that ended (closed loop).
    """

    def __init__(
        self,
        client: Client,
        arm: Arm,
        arriving: Iterable[Arrival],
        *,
        stop_s: float,
        seed: int,
        supply: Iterator[Arrival] | None = None,
    ) -> None:
        self._client = client
        self._arm = arm
        self._stop_s = stop_s
        self._seed = seed
        self._supply = supply
        self._order = itertools.count()
        self._start_s = client.now_s
        self._run = Run([Played(arrival) for arrival in arriving])
        self._due = [(s.arrival.at_s, next(self._order), s) for s in self._run.sessions]
        heapq.heapify(self._due)
        self._open: dict[str, tuple[Played, Record]] = {}

    @property
    def now_s(self) -> float:
        """Seconds since it began, on its client's clock."""
        return self._client.now_s - self._start_s

    def advance(self) -> bool:
        """Lets the engine step, or time pass until a turn is due; returns whether anything was
        left to do."""
        client, due, now_s = self._client, self._due, self.now_s
        if now_s >= self._stop_s:
            return False
        while due and due[0][0] <= now_s:
            self._submit(heapq.heappop(due)[2])
        if not client.is_busy:
            if due:
                client.wait_until(self._start_s + min(due[0][0], self._stop_s))
            return bool(due)
        ended = client.step()
        self._sample(self.now_s - now_s)
        for name in ended:
            self._end_turn(*self._open.pop(name))
        return True

    def end(self) -> Run:
        """Returns what was played."""
        self._run.end_s = self.now_s
        self._run.num_waiting = len(self._client.scheduler.waiting)
        return self._run

    def _submit(self, played: Played) -> None:
        session, turn = played.session, played.session.turns[played.turn]
        # The same tokens whatever the arm and the order in which turns end.
        rng = random.Random(f"{self._seed} {played.arrival.index} {played.turn}")
        new = [rng.randrange(3, self._client.vocabulary) for _ in range(turn.new_tokens)]
        played.context += new
        is_last = played.turn == len(session.turns) - 1
        hints: dict[str, object] = {}
        if not is_last:
            hints["kvret_tool"] = session.kind
            if self._arm.is_told:
                hints["kvret_expect_s"] = turn.tool_s
        elif self._arm.is_told:
            hints["kvret_final"] = 1
        name = f"s{played.arrival.index}"
        is_agent = len(session.turns) > 1
        record = self._client.submit(
            f"{name}.{played.turn}",
            played.context,
            max_tokens=turn.completion_tokens,
            session=name if is_agent else None,
            first_arrival_s=self._start_s + played.arrival.at_s,
            hints=hints if is_agent else {},
        )
        self._open[f"{name}.{played.turn}"] = (played, record)

    def _end_turn(self, played: Played, record: Record) -> None:
        turn = played.session.turns[played.turn]
        assert record.first_token_s is not None and record.finished_s is not None
        ttft_s = record.first_token_s - record.submitted_s
        if played.turn:
            played.resume_ttft_s.append(ttft_s)
        else:
            played.first_ttft_s = ttft_s
        played.outputs.append(list(record.output))
        ended_s = record.finished_s - self._start_s
        played.ended_s.append(ended_s)
        played.context = [*record.prompt, *record.output]
        played.turn += 1
        self._run.num_needed += turn.new_tokens + turn.completion_tokens
        if played.turn < len(played.session.turns):
            played.tool_s += turn.tool_s
            heapq.heappush(self._due, (ended_s + turn.tool_s, next(self._order), played))
            return
        played.finished_s = ended_s
        if self._supply is not None:
            after = next(self._supply)
            follower = Played(Arrival(after.index, ended_s, after.session))
            self._run.sessions.append(follower)
            heapq.heappush(self._due, (ended_s, next(self._order), follower))

    def _sample(self, seconds: float) -> None:
        """Adds up who held memory in the step that ended, for nothing."""
        scheduler, waste = self._client.scheduler, self._run.waste
        retention = getattr(scheduler, "retention", None)
        if retention is not None:
            waste.preserve += retention.num_held_blocks * scheduler.block_size * seconds
        for request in scheduler.running:
            if request.num_computed_tokens < request.num_prompt_tokens:
                # vLLM appends a random suffix to a name.
                played, _ = self._open[request.request_id.partition("-")[0]]
                if played.turn:
                    waste.recompute += request.num_computed_tokens * seconds
        if len(scheduler.waiting):
            pool = scheduler.kv_cache_manager.block_pool
            waste.idle += pool.get_num_free_blocks() * scheduler.block_size * seconds
