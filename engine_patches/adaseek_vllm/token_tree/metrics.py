"""What trees do, as Prometheus counters that the engine's process adds to vLLM's `/metrics`.

vLLM's own statistics have no place for them, and the server that answers `/metrics` is another
process. Prometheus' multiprocess mode is for that: with PROMETHEUS_MULTIPROC_DIR set, counters of
all processes are files in that directory, and vLLM's endpoint sums them up. `adaseek serve` sets
it; for `vllm serve` it is the user's to set. Without it the counters stay in the process.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from adaseek_vllm.token_tree.stats import TreeStats

__all__ = ["TreeMetrics"]

_DEPTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class TreeMetrics:
    """Counters of one model runner.

    Args:
        registry: where they are registered; default: one of their own, so that two engines of a
            process do not get in each other's way.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(
                f"adaseek:token_tree_{name}", description, labels, registry=self.registry
            )

        self._requests = counter("verified_requests", "Requests verified, once per step.")
        self._branching = counter("branching_requests", "Those whose draft branched.")
        self._nodes = counter("nodes", "Drafted tokens verified.")
        self._tokens = counter("tokens", "Tokens emitted, bonus tokens included.")
        self._accepted = counter(
            "accepted_tokens", "Accepted tokens that a source had guessed.", "source"
        )
        self._seconds = counter("seconds", "Time by part of a step.", "part")
        self._depth = Histogram(
            "adaseek:token_tree_accepted_depth",
            "Accepted drafted tokens of a request in a step.",
            buckets=_DEPTHS,
            registry=self.registry,
        )

    def add(self, stats: TreeStats) -> None:
        """Adds what was counted in one step."""
        self._requests.inc(stats.num_requests)
        self._branching.inc(stats.num_branching)
        self._nodes.inc(stats.num_nodes)
        self._tokens.inc(stats.num_tokens)
        for source, count in stats.accepted_by_source.items():
            self._accepted.labels(source).inc(count)
        for part, seconds in stats.seconds.items():
            self._seconds.labels(part).inc(seconds)
        for depth, count in stats.accepted_depths.items():
            for _ in range(count):
                self._depth.observe(depth)
