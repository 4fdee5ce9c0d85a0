"""A model server that repeats what it is asked, and a process that is left without hooks."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from adaseek.testing.loopback import LoopbackServer, echo


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(echo, models=("m", "m2"), keep_alive=False) as running:
        yield running


@pytest.fixture
def left_as_found() -> Iterator[None]:
    """The test ends without a hook, so that the next one starts with an unwrapped class."""
    from adaseek_langchain import disable
    from adaseek_langchain._interpose import uninstall

    gc.collect()
    yield
    disable()
    gc.collect()
    uninstall()
