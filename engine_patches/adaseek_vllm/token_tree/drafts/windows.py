"""The target's latest hidden states of each request: all that a draft keeps between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adaseek_vllm.token_tree.drafts.config import DraftConfig
from adaseek_vllm.token_tree.sources import DraftRequest

__all__ = ["Window", "Windows"]


@dataclass(frozen=True)
class Window:
    """What the draft sees of some requests, the root last, missing places first."""

    tokens: Tensor
    """[B, window] trimmed ids."""
    hidden: Tensor
    """[B, window, T]: the state that chose each token; zeros where it is missing."""
    is_there: Tensor
    """[B, window] bool"""


class Windows:
    """Keeps at most `window` hidden states per request that has not ended."""

    def __init__(self, config: DraftConfig, ids: Tensor) -> None:
        self._config = config
        self._ids = ids
        # Request -> (position behind the last state, states [<= window, T]).
        self._states: dict[str, tuple[int, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def take_in(self, request: DraftRequest) -> None:
        """Adds what the target has just computed of a request."""
        hidden, size = request.hidden, self._config.window
        if hidden is None or not len(hidden):
            return
        end, states = self._states.get(request.request_id, (0, hidden[:0]))
        if end != request.first_hidden:  # It was preempted, or its start came from a cache.
            states = hidden[:0]
        states = torch.cat([states, hidden[-size:]])[-size:]
        self._states[request.request_id] = request.first_hidden + len(hidden), states

    def forget(self, request_id: str) -> None:
        self._states.pop(request_id, None)

    def of(self, requests: Sequence[DraftRequest], dtype: torch.dtype) -> Window:
        """Returns what the draft may see of each request's end."""
        size, width = self._config.window, self._config.target.hidden_size
        window = Window(
            torch.full((len(requests), size), self._config.num_tokens, dtype=torch.int64),
            torch.zeros(len(requests), size, width, dtype=dtype),
            torch.zeros(len(requests), size, dtype=torch.bool),
        )
        for row, request in enumerate(requests):
            num_tokens = min(size, len(request.tokens))
            latest = torch.from_numpy(request.tokens[-num_tokens:].astype("int64"))
            window.tokens[row, -num_tokens:] = self._ids[latest]
            window.is_there[row, -1] = True
            end, states = self._states.get(request.request_id, (-1, window.hidden[0, :0]))
            if end == len(request.tokens) - 1 and len(states):
                window.hidden[row, -len(states) :] = states.to(dtype)
                window.is_there[row, -min(len(states), num_tokens) :] = True
        return window
