"""Pytest fixtures: `pytest_plugins = ["adaseek.testing.fixtures"]` in a test file or conftest.

Experimental.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from adaseek.testing.local_engine import LocalEngine, local_engine

__all__ = ["LocalEngineFactory", "local_engine_factory"]


class LocalEngineFactory:
    """Starts engines on demand and keeps them: the same arguments give the same engine."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._engines: dict[tuple[object, ...], LocalEngine] = {}

    def __call__(
        self,
        model: str,
        *,
        flags: Sequence[str] = (),
        cores: Sequence[int] | None = None,
        max_model_len: int = 4096,
    ) -> LocalEngine:
        """Returns a running engine; the arguments are those of `local_engine`."""
        key = (model, tuple(flags), None if cores is None else tuple(cores), max_model_len)
        engine = self._engines.get(key)
        if engine is None or engine.process.poll() is not None:  # a test may have killed it
            engine = self._stack.enter_context(
                local_engine(model, flags=flags, cores=cores, max_model_len=max_model_len)
            )
            self._engines[key] = engine
        return engine


@pytest.fixture(scope="session")
def local_engine_factory() -> Iterator[LocalEngineFactory]:
    """Yields a factory of real local engines, which all stop at the end of the session."""
    with ExitStack() as stack:
        yield LocalEngineFactory(stack)
