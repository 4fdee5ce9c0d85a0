"""What it costs to copy a context to host memory and back, learned from the copies made."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CopyRate", "HostCost", "host_waste"]


@dataclass(frozen=True)
class HostCost:
    """Time of copies; both directions run beside the model's steps.

    Args:
        out_s: seconds to copy one token to host memory.
        in_s: seconds to copy one token back.
        queued_tokens: tokens that wait to be copied out.
    """

    out_s: float
    in_s: float
    queued_tokens: int = 0

    def copied_in_s(self, num_tokens: float) -> float:
        """Returns the seconds until so many tokens are copied out, behind those that wait."""
        return (self.queued_tokens + num_tokens) * self.out_s


def host_waste(
    context_tokens: float,
    new_tokens: float,
    cost: HostCost,
    *,
    memory_price: float,
    load_probability: float,
) -> float:
    """Returns the token-seconds of moving a paused context to host memory and back.

    Source: InferCept (arXiv 2402.01869), waste of Swap. Differs: copies run beside the steps, so
    they do not stall the batch; what is wasted is the memory that a context holds while it is
    copied, on the way out at the price of memory.

    Args:
        context_tokens: tokens that the next turn wants back.
        new_tokens: tokens of them without a copy, which leave the GPU when they have one.
        cost: time of copies.
        memory_price: share of time in which somebody lacks memory.
        load_probability: chance that a next turn comes and has to copy the context back.
    """
    out_s = cost.copied_in_s(new_tokens)
    back_s = context_tokens * cost.in_s
    return memory_price * new_tokens * out_s + load_probability * context_tokens * back_s


class CopyRate:
    """Bytes that are copied in a second, in one direction; recent copies count most.

    Args:
        initial_bytes_per_s: until a copy was made; a slow PCIe link.
    """

    _WEIGHT = 0.2

    def __init__(self, initial_bytes_per_s: float = 8e9) -> None:
        self.bytes_per_s = initial_bytes_per_s
        self.num_samples = 0

    def observe(self, num_bytes: int, seconds: float) -> None:
        """Learns from one or several copies."""
        if num_bytes <= 0 or seconds <= 0:
            return
        rate = num_bytes / seconds
        # The first copy replaces the guess.
        weight = self._WEIGHT if self.num_samples else 1.0
        self.bytes_per_s += weight * (rate - self.bytes_per_s)
        self.num_samples += 1
