"""The engines that the benchmark compares."""

from __future__ import annotations

from play import Arm

__all__ = ["ARMS", "QUICK", "SIMPLE_RULES", "choose_arms"]

# Every rule that holds may hold as much, so that none wins by its limit.
_SHARE = {"max_pinned_fraction": 0.9}
# The order of InferCept and Continuum: a turn queues where its session's first turn stood.
_SESSION = {"order": "session"}
# Host memory, in sizes of the KV cache.
_HOST = 4.0

ARMS = (
    Arm("stock, no prefix cache", prefix_caching=False),
    Arm("same, by first arrival", prefix_caching=False, arrival_order=True),
    Arm("stock, prefix cache"),
    Arm("session order only", {"policy": "soft", **_SESSION}),
    Arm("preserve always", {"policy": "pin", **_SESSION, **_SHARE}),
    Arm("fixed threshold 1 s", {"policy": "heuristic", **_SESSION, **_SHARE}),
    Arm("time to live 10 s", {"policy": "ttl", **_SESSION, **_SHARE}),
    Arm(
        "InferCept, elapsed",
        {"policy": "infercept", "estimate": "elapsed", **_SESSION, **_SHARE},
    ),
    Arm(
        "InferCept, oracle",
        {"policy": "infercept", "estimate": "hint", **_SESSION, **_SHARE},
        is_told=True,
    ),
    Arm("our order only", {"policy": "soft"}),
    Arm("fixed threshold 1 s, our order", {"policy": "heuristic", **_SHARE}),
    Arm("ours, session order", {"policy": "auto", **_SESSION, **_SHARE}),
    Arm("ours", {"policy": "auto", **_SHARE}),
    Arm("ours, oracle", {"policy": "auto", "estimate": "hint", **_SHARE}, is_told=True),
    Arm("swap always", {"policy": "host", "prefetch": False, **_SHARE}, host_pools=_HOST),
    Arm(
        "ours, host, no prefetch", {"policy": "auto", "prefetch": False, **_SHARE}, host_pools=_HOST
    ),
    Arm("ours, host", {"policy": "auto", "prefetch": True, **_SHARE}, host_pools=_HOST),
    Arm(
        "ours, host, oracle",
        {"policy": "auto", "estimate": "hint", "prefetch": True, **_SHARE},
        is_told=True,
        host_pools=_HOST,
    ),
)
SIMPLE_RULES = (
    "session order only",
    "preserve always",
    "fixed threshold 1 s",
    "time to live 10 s",
    "InferCept, elapsed",
)
"""What needs no model of cost and no oracle: ours should never lose to the best of them."""
QUICK = (
    "stock, no prefix cache",
    "stock, prefix cache",
    "fixed threshold 1 s",
    "ours",
)


def choose_arms(names: list[str] | None) -> list[Arm]:
    """Returns the arms with these names, all of them without names.

    Raises:
        ValueError: there is no arm of a name.
    """
    known = {arm.name: arm for arm in ARMS}
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"no arm {sorted(unknown)}; there are {list(known)}")
    return [known[name] for name in names or known]
