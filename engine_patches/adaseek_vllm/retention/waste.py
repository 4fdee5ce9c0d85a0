"""Waste of each way to treat a paused session's KV cache, in token-seconds.

Waste is memory held or refilled without making tokens, over time. The bytes of one token are the
same in every term, so they cancel and tokens stand for memory. Pure arithmetic: no clock, no vLLM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "StepCost",
    "break_even_s",
    "chunked_discard_waste",
    "discard_waste",
    "infercept_discard_waste",
    "prefetch_gain",
    "preserve_waste",
    "recompute_waste",
    "swap_waste",
]


@dataclass(frozen=True)
class StepCost:
    """Time of one engine step as a linear function of what it computes.

    Args:
        fixed_s: seconds of a step that computes next to nothing.
        per_token_s: seconds for each scheduled token.
        per_context_token_s: seconds for each pair of a scheduled token and a token it attends to.
    """

    fixed_s: float
    per_token_s: float
    per_context_token_s: float = 0.0

    def step_s(self, num_tokens: float, context_pairs: float) -> float:
        """Returns the seconds of a step.

        Args:
            num_tokens: tokens that it computes.
            context_pairs: sum over them of the tokens that they attend to.
        """
        added_s = self.per_token_s * num_tokens + self.per_context_token_s * context_pairs
        return self.fixed_s + added_s

    def forward_s(self, num_tokens: float) -> float:
        """Returns the seconds of one step that computes `num_tokens` of a fresh prompt."""
        return self.fixed_s + self.added_s(num_tokens)

    def added_s(self, num_tokens: float) -> float:
        """Returns the seconds that computing `num_tokens` of a prompt adds to steps that run."""
        pairs = num_tokens * num_tokens / 2
        return self.per_token_s * num_tokens + self.per_context_token_s * pairs


def preserve_waste(context_tokens: float, pause_s: float) -> float:
    """Returns the waste of keeping a paused context on the GPU.

    Source: InferCept (arXiv 2402.01869), waste of Preserve.
    """
    return context_tokens * pause_s


def discard_waste(context_tokens: float, other_tokens: float, cost: StepCost) -> float:
    """Returns the waste of dropping a context and computing it again in one step.

    Source: InferCept, waste of Discard: the context's own memory while it is computed, and the
    memory of the requests that the long step stalls.

    Args:
        context_tokens: tokens of the paused context.
        other_tokens: tokens of the other running requests' contexts.
        cost: time of a step.
    """
    step_s = cost.forward_s(context_tokens)
    return step_s * context_tokens + step_s * other_tokens


def chunked_discard_waste(
    context_tokens: float, other_tokens: float, chunk_tokens: float, cost: StepCost
) -> float:
    """Returns the waste of dropping a context and computing it again in chunks.

    Source: InferCept, waste of chunked Discard: memory grows with the chunks, hence the half.
    """
    if context_tokens <= 0:
        return 0.0
    num_chunks = math.ceil(context_tokens / max(1.0, chunk_tokens))
    own = cost.forward_s(context_tokens) * context_tokens / 2
    stalled = num_chunks * cost.forward_s(context_tokens / num_chunks) * other_tokens
    return own + stalled


def swap_waste(batch_tokens: float, swap_s: float) -> float:
    """Returns the waste of copying a context out and back while the whole batch waits.

    Source: InferCept, waste of Swap; `swap_s` is one direction.
    """
    return 2 * swap_s * batch_tokens


def recompute_waste(
    context_tokens: float, running_tokens: float, chunk_tokens: float, cost: StepCost
) -> float:
    """Returns the waste of computing a context again in chunks beside running requests.

    Differs from `chunked_discard_waste` in what the others pay: they would step anyway, so they
    are stalled only by the time that the chunks add, not by the fixed time of a step.

    Args:
        context_tokens: tokens to compute again.
        running_tokens: tokens of the running requests' contexts.
        chunk_tokens: tokens of the context that fit in one step.
        cost: time of a step.
    """
    if context_tokens <= 0:
        return 0.0
    num_chunks = math.ceil(context_tokens / max(1.0, chunk_tokens))
    added_s = cost.added_s(context_tokens)
    own = (num_chunks * cost.fixed_s + added_s) * context_tokens / 2
    return own + added_s * running_tokens


def prefetch_gain(
    num_tokens: float,
    *,
    saved_s: float,
    held_s: float,
    return_probability: float,
    memory_price: float,
) -> float:
    """Returns the token-seconds gained by copying a context back now, not when its turn comes.

    The turn waits that much less for the copy; until it comes, others cannot have the memory. The
    counterpart of `host_waste`: where this is above zero, holding wastes less than copying.

    Args:
        num_tokens: tokens to copy back.
        saved_s: seconds of the copy that are over when the turn comes, as expected.
        held_s: seconds until the turn comes, as expected.
        return_probability: chance that it comes at all.
        memory_price: share of time in which somebody lacks memory.
    """
    return num_tokens * (return_probability * saved_s - memory_price * held_s)


def break_even_s(
    context_tokens: float, running_tokens: float, chunk_tokens: float, cost: StepCost
) -> float:
    """Returns the pause at which keeping a context wastes as much as computing it again.

    Nearly independent of the context: about `cost.per_token_s * running_tokens`.
    """
    if context_tokens <= 0:
        return 0.0
    waste = recompute_waste(context_tokens, running_tokens, chunk_tokens, cost)
    return waste / context_tokens


def infercept_discard_waste(
    context_tokens: int, running_tokens: int, inflight_tokens: int, cost: StepCost
) -> float:
    """Returns the waste of Discard as InferCept's released code computes it.

    Source: WukLab/InferCept, its scheduler's rule. It takes 384 as the number of tokens from
    which a step's time grows, for every model. Kept for comparison.

    Args:
        context_tokens: tokens of the paused context.
        running_tokens: tokens of the running requests' contexts.
        inflight_tokens: tokens that the running requests compute in a step.
        cost: time of a step.
    """
    saturation = 384
    chunk = max(saturation - inflight_tokens, 1)
    num_full = max(math.ceil(context_tokens / chunk) - 1, 0)
    last = context_tokens - num_full * chunk
    full_step_s = cost.fixed_s + cost.per_token_s * saturation
    own = full_step_s * (1 + num_full) * num_full / 2 * chunk
    stalled = cost.per_token_s * chunk * num_full * running_tokens
    return own + stalled + cost.per_token_s * last * (running_tokens + last)
