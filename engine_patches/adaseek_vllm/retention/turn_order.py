"""Where a session's next turn queues. Pure: plain numbers in and out."""

from __future__ import annotations

__all__ = ["ORDERS", "queue_time"]

ORDERS = ("context", "session", "fcfs")


def queue_time(
    order: str, arrival_s: float, *, first_arrival_s: float, context_share: float
) -> float:
    """Returns the time of arrival, in seconds, by which a turn takes its place in the queue.

    Source: InferCept (arXiv 2402.01869) and Continuum (arXiv 2511.02230) queue a turn where its
    session's first turn stood (`session`). Differs: there, a context that was lost goes before all
    who came since, and until there is room for all of it nobody is admitted. With `context` a turn
    keeps as much of that place as of its context. No turn is ever put behind its own arrival.

    Args:
        order: one of `ORDERS`; `fcfs` is vLLM's.
        arrival_s: when the turn arrived.
        first_arrival_s: when its session's first turn did; not later.
        context_share: share of the session's context that is still on the GPU, from 0 to 1.
    """
    if order == "fcfs":
        return arrival_s
    if order == "session":
        return first_arrival_s
    return arrival_s - context_share * (arrival_s - first_arrival_s)
