"""The intercepts that one server keeps: bounded in number and time, apart by tenant. No vLLM.

An intercept is a generation that pauses for a tool and is resumed with the tool's answer. What is
kept of one is its token ids; its KV cache is the retention controller's to hold or let go.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from adaseek_vllm.retention.endpoint_requests import InterceptError, Triggers

__all__ = ["Intercept", "InterceptStore", "State", "new_id"]

State = Literal["running", "paused", "finished", "cancelled"]

_MAX_GONE = 4096


@dataclass(eq=False)
class Intercept:
    """One generation with its pauses.

    Args:
        id: hard to guess; who knows it may resume, within its tenant.
        tenant: the cache salt; "" without one.
        session: the session that its client said it belongs to; "" if it is one of its own.
        model: the served model's name.
        plan: what the engine needs to go on, beside tokens; opaque here.
        triggers: where it pauses.
        token_ids: the context up to the last pause: the prompt, what the model wrote, what tools
            answered.
        num_left: tokens that the model may still write.
        state: `running` while the model writes, `paused` while a tool works; `finished` and
            `cancelled` ones are kept no more.
        trigger: what it paused at, as the client is told.
        num_segments: how often the model has written to the end or a pause.
        expires_s: when it is dropped if it is still paused, on the store's clock.
    """

    id: str
    tenant: str
    session: str
    model: str
    plan: Any
    triggers: Triggers
    token_ids: list[int]
    num_left: int
    state: State = "running"
    trigger: dict[str, object] | None = None
    num_segments: int = 0
    expires_s: float = 0.0


@dataclass
class InterceptStore:
    """Intercepts by id, those that paused longest ago first.

    Args:
        max_intercepts: kept at most, running ones included.
        ttl_s: a paused one is dropped after this, in seconds.
        now: returns the time in seconds; only differences count.
    """

    max_intercepts: int
    ttl_s: float
    now: Callable[[], float]
    _kept: OrderedDict[str, Intercept] = field(default_factory=OrderedDict)
    # Why those that were dropped are gone, and whose they were.
    _gone: OrderedDict[str, tuple[str, str]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def num_paused(self) -> int:
        return sum(intercept.state == "paused" for intercept in self._kept.values())

    def add(self, intercept: Intercept) -> list[Intercept]:
        """Adds a running intercept; returns the paused ones dropped to make room.

        Whoever keeps most intercepts loses the one that paused longest ago, so that a flood of one
        tenant costs the others nothing.

        Raises:
            InterceptError: the store is full of running ones.
        """
        dropped = []
        while len(self._kept) >= self.max_intercepts:
            victim = self._victim()
            if victim is None:
                raise InterceptError(
                    429,
                    f"{len(self._kept)} intercepts are running, but `max_intercepts` of "
                    "--kv-retention allows no more: try again later.",
                )
            self._drop(victim, "was dropped to make room for others (`max_intercepts`)")
            dropped.append(victim)
        self._kept[intercept.id] = intercept
        return dropped

    def find(self, intercept_id: str, tenant: str) -> Intercept:
        """Returns an intercept of `tenant`.

        Raises:
            InterceptError: 404 if there is none, 410 if there was one. Another tenant's is as
                unknown as one that never was.
        """
        intercept = self._kept.get(intercept_id)
        if intercept is not None and intercept.tenant == tenant:
            return intercept
        owner, reason = self._gone.get(intercept_id, ("", ""))
        if reason and owner == tenant:
            raise InterceptError(
                410,
                f"Intercept {intercept_id!r} {reason}: open a new one with the whole context; "
                "what is still cached of it is not computed again.",
            )
        raise InterceptError(
            404,
            f"There is no intercept {intercept_id[:80]!r} here: use the `id` that opening one "
            "returned, on the same server and with the same `cache_salt`.",
        )

    def start(self, intercept_id: str, tenant: str) -> Intercept:
        """Returns a paused intercept, which runs from now on.

        Raises:
            InterceptError: as for `find`; 409 if it runs already.
        """
        intercept = self.find(intercept_id, tenant)
        if intercept.state == "running":
            raise InterceptError(
                409, f"Intercept {intercept_id!r} is running: resume it when it has paused."
            )
        intercept.state = "running"
        return intercept

    def pause(self, intercept: Intercept) -> None:
        """Lets a running intercept wait for its tool; one that was ended meanwhile stays so."""
        if intercept.id not in self._kept:
            return
        intercept.state = "paused"
        intercept.expires_s = self.now() + self.ttl_s
        self._kept.move_to_end(intercept.id)

    def seconds_left(self, intercept: Intercept) -> float:
        """Returns how long a paused intercept is kept from now on."""
        return max(0.0, round(intercept.expires_s - self.now(), 3))

    def end(self, intercept: Intercept, state: Literal["finished", "cancelled"]) -> None:
        """Drops an intercept, unless it was dropped before."""
        if intercept.id in self._kept:
            intercept.state = state
            self._drop(intercept, f"was {state}")

    def expire(self) -> list[Intercept]:
        """Drops the paused intercepts whose time is over, and returns them."""
        now_s = self.now()
        late = [
            intercept
            for intercept in self._kept.values()
            if intercept.state == "paused" and intercept.expires_s <= now_s
        ]
        for intercept in late:
            self._drop(intercept, f"was not resumed within {self.ttl_s:g} s (`intercept_ttl_s`)")
        return late

    def _victim(self) -> Intercept | None:
        held = Counter(intercept.tenant for intercept in self._kept.values())
        paused = [intercept for intercept in self._kept.values() if intercept.state == "paused"]
        return max(paused, key=lambda intercept: held[intercept.tenant], default=None)

    def _drop(self, intercept: Intercept, reason: str) -> None:
        del self._kept[intercept.id]
        self._gone[intercept.id] = (intercept.tenant, reason)
        while len(self._gone) > _MAX_GONE:
            self._gone.popitem(last=False)


def new_id() -> str:
    """Returns an id that nobody guesses: 128 random bits."""
    return f"icpt-{secrets.token_hex(16)}"
