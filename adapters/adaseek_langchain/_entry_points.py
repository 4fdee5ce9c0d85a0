"""The ways in which a chat model can be called, each with a question asked before it goes on.

Nothing here knows recipes or callbacks: whoever wraps an entry point says what becomes of a call.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from typing import Any  # Any: entry points take and return what the user's model class does

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig

from adaseek_langchain._route import Below, Route, config_of
from adaseek_langchain._seam import is_inside

__all__ = ["ENTRY_POINTS", "MARK", "Find", "wrapped"]

Find = Callable[[BaseChatModel, Any, RunnableConfig | None, Mapping[str, Any]], Route | None]
"""Model, input, config and arguments of a call -> what becomes of it; None: as without us."""

MARK = "__adaseek_original__"
"""Attribute of a wrapped method: the method that it wraps."""


def wrapped(name: str, original: Any, find: Find, *, on_class: bool = False) -> Any:
    """Returns the entry point `name` asking `find` first; `original` is called if it has nothing.

    Calls from inside a call that was dealt with (an ensemble's members, the `generate` below an
    `invoke`) go to `original` at once.

    Args:
        on_class: whether it is to take the place of `original`, so that what is sent must not
            come through here again.
    """
    below = original if on_class else None
    made = functools.wraps(original)(ENTRY_POINTS[name](original, find, below))
    setattr(made, MARK, original)
    return made


def _invoke(original: Any, find: Find, below: Below) -> Any:
    def invoke(
        self: BaseChatModel,
        input: Any,  # noqa: A002  (the host's name, which callers may use)
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        route = None if is_inside() else find(self, input, config, kwargs)
        if route is None:
            return original(self, input, config, **kwargs)
        return route.invoke(config, below)

    return invoke


def _ainvoke(original: Any, find: Find, below: Below) -> Any:
    async def ainvoke(
        self: BaseChatModel,
        input: Any,  # noqa: A002  (the host's name, which callers may use)
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        route = None if is_inside() else find(self, input, config, kwargs)
        if route is None:
            return await original(self, input, config, **kwargs)
        return await route.ainvoke(config, below)

    return ainvoke


def _stream(original: Any, find: Find, below: Below) -> Any:
    def stream(
        self: BaseChatModel,
        input: Any,  # noqa: A002  (the host's name, which callers may use)
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[Any]:
        route = None if is_inside() else find(self, input, config, kwargs)
        if route is None:
            yield from original(self, input, config, **kwargs)
        else:
            yield from route.stream(config, below)

    return stream


def _astream(original: Any, find: Find, below: Below) -> Any:
    async def astream(
        self: BaseChatModel,
        input: Any,  # noqa: A002  (the host's name, which callers may use)
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        route = None if is_inside() else find(self, input, config, kwargs)
        chunks: AsyncGenerator[Any, None]
        chunks = (
            original(self, input, config, **kwargs)
            if route is None
            else route.astream(config, below)
        )
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    return astream


def _generate(original: Any, find: Find, below: Below) -> Any:
    def generate(
        self: BaseChatModel, messages: Any, stop: Any = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        untouched: LLMResult
        if is_inside():
            untouched = original(self, messages, stop, callbacks, **kwargs)
            return untouched
        arguments, rest = _split(callbacks, kwargs)
        routes = _routes(self, messages, {**rest, **_given(stop)}, arguments, find)
        if not routes:
            untouched = original(self, messages, stop, callbacks, **kwargs)
            return untouched
        return _joined(self, [route.generate(arguments, below) for route in routes])

    return generate


def _agenerate(original: Any, find: Find, below: Below) -> Any:
    async def agenerate(
        self: BaseChatModel, messages: Any, stop: Any = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        untouched: LLMResult
        if is_inside():
            untouched = await original(self, messages, stop, callbacks, **kwargs)
            return untouched
        arguments, rest = _split(callbacks, kwargs)
        routes = _routes(self, messages, {**rest, **_given(stop)}, arguments, find)
        if not routes:
            untouched = await original(self, messages, stop, callbacks, **kwargs)
            return untouched
        return _joined(self, [await route.agenerate(arguments, below) for route in routes])

    return agenerate


def _events(original: Any, find: Find, below: Below) -> Any:
    def stream_events(
        self: BaseChatModel,
        input: Any,  # noqa: A002  (as above)
        config: RunnableConfig | None = None,
        *,
        version: str = "v2",
        **kwargs: Any,
    ) -> Any:
        # v1 and v2 come through `stream`, which is wrapped itself.
        looked_at = version == "v3" and not is_inside()
        route = find(self, input, config, kwargs) if looked_at else None
        if route is None:
            return original(self, input, config, version=version, **kwargs)
        return route.events(config, below)

    return stream_events


def _aevents(original: Any, find: Find, below: Below) -> Any:
    def astream_events(
        self: BaseChatModel,
        input: Any,  # noqa: A002  (as above)
        config: RunnableConfig | None = None,
        *,
        version: str = "v2",
        **kwargs: Any,
    ) -> Any:
        # Not a coroutine itself: with v1 and v2 the original returns an async generator.
        looked_at = version == "v3" and not is_inside()
        route = find(self, input, config, kwargs) if looked_at else None
        if route is None:
            return original(self, input, config, version=version, **kwargs)
        return route.aevents(config, below)

    return astream_events


_RUN_ARGUMENTS = ("tags", "metadata", "run_name", "run_id")


def _split(callbacks: Any, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments of the run, and those of the model."""
    arguments = {name: kwargs[name] for name in _RUN_ARGUMENTS if name in kwargs}
    rest = {name: value for name, value in kwargs.items() if name not in arguments}
    return {**arguments, "callbacks": callbacks}, rest


def _given(stop: Any) -> dict[str, Any]:
    return {} if stop is None else {"stop": stop}


def _routes(
    model: BaseChatModel,
    prompts: Any,
    kwargs: Mapping[str, Any],
    arguments: Mapping[str, Any],
    find: Find,
) -> list[Route]:
    """Returns one route per prompt; none if nothing is to be looked at."""
    config = config_of(arguments)
    found = [find(model, prompt, config, kwargs) for prompt in prompts]
    return [route for route in found if route is not None] if None not in found else []


def _joined(model: BaseChatModel, results: list[LLMResult]) -> LLMResult:
    """Returns the results of several prompts as the one that `generate` gives for all of them."""
    outputs = [result.llm_output for result in results]
    return LLMResult(
        generations=[row for result in results for row in result.generations],
        llm_output=outputs[0] if len(outputs) == 1 else model._combine_llm_outputs(outputs),
        run=[info for result in results for info in result.run or ()] or None,
    )


ENTRY_POINTS: Mapping[str, Callable[[Any, Find, Below], Any]] = {
    "invoke": _invoke,
    "ainvoke": _ainvoke,
    "stream": _stream,
    "astream": _astream,
    "generate": _generate,
    "agenerate": _agenerate,
    "stream_events": _events,
    "astream_events": _aevents,
}
