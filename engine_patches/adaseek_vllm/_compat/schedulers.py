"""vLLM's two scheduler classes."""

from __future__ import annotations

__all__ = ["base_scheduler"]


def base_scheduler(*, async_scheduling: bool) -> type:
    """Returns the scheduler that vLLM 0.32 would use itself.

    A subclass of the synchronous one under asynchronous scheduling would count tokens wrongly.
    """
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    base: type = AsyncScheduler if async_scheduling else Scheduler
    return base
