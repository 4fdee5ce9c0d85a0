"""Keeps the linear algebra of the search on one thread.

Its matrices have a few hundred rows. Sharing them among threads takes longer than computing them:
six times as long where a model server keeps the cores busy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

__all__ = ["single_threaded"]

P = ParamSpec("P")
R = TypeVar("R")


def single_threaded(function: Callable[P, R]) -> Callable[P, R]:
    """Returns `function` with BLAS on one thread while it runs; results may differ in rounding."""

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        with _controller().limit(limits=1):
            return function(*args, **kwargs)

    return limited


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
