"""What trees did in a step, or since the last report."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from adaseek_vllm.token_tree.tree import TreeTokens
from adaseek_vllm.token_tree.verify import Verified

__all__ = ["TreeStats"]


@dataclass
class TreeStats:
    """Counts over verified requests: one request in one step counts once."""

    num_requests: int = 0
    num_nodes: int = 0
    num_tokens: int = 0
    """Emitted, the bonus tokens included."""
    num_branching: int = 0
    accepted_by_source: Counter[str] = field(default_factory=Counter)
    """Accepted tokens that a source had guessed; several may have guessed the same."""
    accepted_depths: Counter[int] = field(default_factory=Counter)
    """Accepted tokens of a request in a step -> how often."""
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """By part of a step."""
    num_predicted: int = 0
    """Steps whose cost was predicted."""
    cost_error: float = 0.0
    """Sum of the relative errors of the predictions."""
    since_s: float = field(default_factory=time.monotonic)

    def add(self, drafts: Iterable[TreeTokens], verified: Iterable[Verified]) -> None:
        """Counts one step."""
        for draft, one in zip(drafts, verified, strict=True):
            self.num_requests += 1
            self.num_nodes += len(draft)
            self.num_branching += not draft.is_chain
            self.num_tokens += len(one.tokens)
            self.accepted_depths[len(one.rows)] += 1

    def merge(self, other: TreeStats) -> None:
        """Adds what another one counted."""
        for name in (
            *("num_requests", "num_nodes", "num_tokens", "num_branching"),
            *("num_predicted", "cost_error"),
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("accepted_by_source", "accepted_depths"):
            getattr(self, name).update(getattr(other, name))
        for part, seconds in other.seconds.items():
            self.seconds[part] += seconds

    def credit(self, accepted: Mapping[str, int]) -> None:
        """Counts source -> accepted tokens that it had guessed."""
        self.accepted_by_source.update(accepted)

    def compare(self, *, predicted_s: float, actual_s: float) -> None:
        """Counts how far off the cost model was in a step."""
        self.num_predicted += 1
        self.cost_error += abs(predicted_s / actual_s - 1.0)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time inside to a part of a step."""
        started_s = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started_s

    def describe(self) -> str:
        """Returns one line, for at least one verified request."""
        num = self.num_requests
        sources = ", ".join(
            f"{name} {count}" for name, count in sorted(self.accepted_by_source.items())
        )
        split = ", ".join(
            f"{part} {1e3 * seconds / num:.2f} ms" for part, seconds in self.seconds.items()
        )
        return (
            f"Token trees: {self.num_tokens / num:.2f} tokens per step and request, "
            f"{self.num_nodes / num:.1f} nodes, {100 * self.num_branching / num:.0f}% branching; "
            f"accepted {self.num_tokens - num} tokens (guessed by: {sources or 'none'}); "
            f"per request: {split}; step cost off by "
            f"{100 * self.cost_error / max(1, self.num_predicted):.0f}%"
        )
