"""Where drafts come from. A source knows text and the target's answers; it runs no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from adaseek_vllm.token_tree.guesses import Continue, Guesses

if TYPE_CHECKING:
    import torch

__all__ = [
    "BatchDraftSource",
    "DraftRequest",
    "DraftSource",
    "PathSource",
    "TreeSource",
    "VerifiedRows",
]


@dataclass(frozen=True)
class DraftRequest:
    """One request that is about to be drafted for."""

    request_id: str
    tokens: NDArray[np.int32]
    """Prompt and output so far; the last one is the root. Valid during the call only."""
    num_new_tokens: int
    """How many of them are new since the last call; 0 while its prompt is still being read."""
    hidden: torch.Tensor | None = None
    """The target's last hidden states at the tokens it computed and kept in this step,
    [tokens, hidden size]; in normal decoding the tokens before the new ones."""
    first_hidden: int = 0
    """Position of the first of them."""
    tenant: str = field(kw_only=True)
    """Its cache salt, empty without one: what one tenant's requests say may help no other's."""


@dataclass(frozen=True)
class VerifiedRows:
    """What the target found likely after the rows of a step, accepted or not."""

    tokens: NDArray[np.int64]
    """[rows]"""
    previous: NDArray[np.int64]
    """The token before each row's, along its branch; -1 where a text begins. [rows]"""
    successors: NDArray[np.int64]
    """The likeliest next tokens, best first, [rows, num_successors]."""
    chances: NDArray[np.float32]
    """The target's chance of each of them if no other token were possible, at temperature 1.
    [rows, num_successors]"""
    said: NDArray[np.int64]
    """The token that was emitted after a row; -1 off the accepted path. [rows]"""
    tenants: Sequence[str]
    """Whose request a row belongs to, as in `DraftRequest`. [rows]"""


class DraftSource(Protocol):
    """One way to guess what comes next: a `PathSource` or a `TreeSource`."""

    @property
    def num_successors(self) -> int:
        """How many of the target's likeliest next tokens `learn` wants; 0: it is not called."""
        ...

    def learn(self, rows: VerifiedRows) -> None:
        """Learns from the rows of a step; at least `num_successors` successors are there."""
        ...

    def forget(self, request_id: str) -> None:
        """Frees what is kept for a request that has ended."""
        ...


@runtime_checkable
class PathSource(DraftSource, Protocol):
    """A source that is asked token by token, so that it goes on where another one led."""

    def begin(self, request: DraftRequest) -> Continue:
        """Takes in what is new of a request; returns its guesses after a path, for this step."""
        ...


@runtime_checkable
class TreeSource(DraftSource, Protocol):
    """A source that makes its own tree."""

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        """Returns at most `max_nodes` guesses about what follows `request.tokens`."""
        ...


@runtime_checkable
class BatchDraftSource(TreeSource, Protocol):
    """A source that drafts for several requests at once, because it runs a model."""

    spent_s: float
    """Seconds that the last call took in the model."""

    def draft_batch(
        self,
        requests: Sequence[DraftRequest],
        known: Sequence[Guesses],
        max_nodes: int,
        step_cost: Callable[[int], float] | None,
    ) -> list[Guesses]:
        """Returns guesses about each request.

        Args:
            requests: those that are about to be drafted for.
            known: what other sources guess about each of them.
            max_nodes: most guesses per request.
            step_cost: seconds of a verification step by its number of rows; None: draft as much
                as may be, whatever it costs.
        """
        ...
