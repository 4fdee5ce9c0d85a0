"""Where drafts come from. A source knows text and the target's answers; it runs no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adaseek_vllm.token_tree.guesses import Guesses

__all__ = ["DraftRequest", "DraftSource"]


@dataclass(frozen=True)
class DraftRequest:
    """One request that is about to be drafted for."""

    request_id: str
    tokens: NDArray[np.int32]
    """Prompt and output so far; the last one is the root. Valid during the call only."""
    num_new_tokens: int
    """How many of them are new since the last call; 0 while its prompt is still being read."""


class DraftSource(Protocol):
    """One way to guess what comes next."""

    @property
    def num_successors(self) -> int:
        """How many of the target's likeliest next tokens `learn` wants; 0: it is not called."""
        ...

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        """Returns at most `max_nodes` guesses about what follows `request.tokens`."""
        ...

    def learn(self, tokens: NDArray[np.int64], successors: NDArray[np.int64]) -> None:
        """Learns from verified rows: after `tokens[i]` the likeliest were `successors[i]`."""
        ...

    def forget(self, request_id: str) -> None:
        """Frees what is kept for a request that has ended."""
        ...
