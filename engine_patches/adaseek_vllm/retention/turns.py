"""What a controller is told of turns that end, and what it answers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from adaseek_vllm.retention.hints import Hints
from adaseek_vllm.retention.policy import Decision
from adaseek_vllm.retention.sessions import Session

__all__ = ["Counts", "EndedTurn", "Outcome", "Released"]


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
        context: what stands for its tokens, to bring them back from host memory; None without any.
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
    context: object = None


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
    num_copied_out: int = 0
    num_resumed_loaded: int = 0
    prefetches: dict[str, int] = field(default_factory=dict)
    held_block_seconds: float = 0.0
