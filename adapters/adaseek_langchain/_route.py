"""Carries out the plan of one chat-model call, in each of the ways in which a model is called."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any  # Any: inputs, arguments and replies are those of the user's model class
from uuid import uuid4

from adaseek.hints import Hint
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.runnables.config import merge_configs

from adaseek_langchain._flow import Ask, Flow, adrive, drive
from adaseek_langchain._messages import answer_chunk
from adaseek_langchain._plan import Plan
from adaseek_langchain._seam import Carrier, Request, begin_sending, end_sending, sending

__all__ = ["Below", "Route", "config_of"]

Below = Callable[..., Any] | None
"""The entry point that our wrapper wraps; None: there is no wrapper of ours on the class."""

_NO_STREAM = "nostream"
"""LangGraph's tag for runs whose tokens are not the program's answer."""


@dataclass(slots=True, eq=False)  # not frozen: one is made for every model call that is observed
class Route:
    """One call of a chat model, and what becomes of it.

    Attributes:
        request: the call as the program made it.
        input: its input as given; sent as it is unless there is a plan.
        plan: what to send instead, or None.
        carrier: the handler that observes the call, or None.
        fails_open: whether the original request is sent if putting answers together fails.
    """

    request: Request
    input: Any
    kwargs: Mapping[str, Any]
    plan: Plan | None
    carrier: Carrier | None
    fails_open: bool

    def invoke(self, config: RunnableConfig | None, below: Below = None) -> AIMessage:
        """Returns the answer."""
        if self.plan is not None and self.plan.flow is not None:
            return self._put_together(self.plan.flow(), config)
        model, sent, kwargs = self._single()
        token = begin_sending(self._told())
        try:
            answer: AIMessage = _entry(model, "invoke", below)(sent, config, **kwargs)
            return answer
        finally:
            end_sending(token)

    async def ainvoke(self, config: RunnableConfig | None, below: Below = None) -> AIMessage:
        """Returns the answer."""
        if self.plan is not None and self.plan.flow is not None:
            return await self._aput_together(self.plan.flow(), config)
        model, sent, kwargs = self._single()
        token = begin_sending(self._told())
        try:
            answer: AIMessage = await _entry(model, "ainvoke", below)(sent, config, **kwargs)
            return answer
        finally:
            end_sending(token)

    def stream(
        self, config: RunnableConfig | None, below: Below = None
    ) -> Iterator[AIMessageChunk]:
        """Yields the chunks of the answer as they come; one chunk if several requests made it."""
        if self.plan is not None and self.plan.flow is not None:
            yield answer_chunk(self._put_together(self.plan.flow(), config))
            return
        model, sent, kwargs = self._single()
        yield from _stepped(_entry(model, "stream", below)(sent, config, **kwargs), self._told())

    async def astream(
        self, config: RunnableConfig | None, below: Below = None
    ) -> AsyncGenerator[AIMessageChunk, None]:
        """Yields the chunks of the answer as they come; one chunk if several requests made it."""
        if self.plan is not None and self.plan.flow is not None:
            yield answer_chunk(await self._aput_together(self.plan.flow(), config))
            return
        model, sent, kwargs = self._single()
        source = _entry(model, "astream", below)(sent, config, **kwargs)
        chunks = _astepped(source, self._told())
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()

    def generate(self, arguments: Mapping[str, Any], below: Below = None) -> LLMResult:
        """Returns the answer as `generate` returns it; `arguments` are callbacks, tags ..."""
        if self.plan is not None and self.plan.flow is not None:
            return _as_result(self._put_together(self.plan.flow(), config_of(arguments)))
        model, _, kwargs = self._single()
        with sending(self._told()):
            generate = _entry(model, "generate", below)
            result: LLMResult = generate([self._messages()], **arguments, **kwargs)
            return result

    async def agenerate(self, arguments: Mapping[str, Any], below: Below = None) -> LLMResult:
        """Returns the answer as `agenerate` returns it; `arguments` are callbacks, tags ..."""
        if self.plan is not None and self.plan.flow is not None:
            return _as_result(await self._aput_together(self.plan.flow(), config_of(arguments)))
        model, _, kwargs = self._single()
        with sending(self._told()):
            generate = _entry(model, "agenerate", below)
            result: LLMResult = await generate([self._messages()], **arguments, **kwargs)
            return result

    def events(self, config: RunnableConfig | None, below: Below = None) -> Any:
        """Returns what `stream_events` (v3) gives for the planned request.

        Its stream is read in the consumer's context, so a plan of several requests cannot be
        carried out here: the request goes out as the program made it, and that is counted.
        """
        route = self._streamable()
        model, sent, kwargs = route._single()
        with sending(route._told()):
            start = _entry(model, "stream_events", below)
            return start(sent, route._begun_later(config), version="v3", **kwargs)

    async def aevents(self, config: RunnableConfig | None, below: Below = None) -> Any:
        """As `events`; the task that makes the request takes this context along."""
        route = self._streamable()
        model, sent, kwargs = route._single()
        with sending(route._told()):
            start = _entry(model, "astream_events", below)
            return await start(sent, route._begun_later(config), version="v3", **kwargs)

    def _begun_later(self, config: RunnableConfig | None) -> RunnableConfig:
        """Returns `config` with an id for the run: it begins when its stream is first read, in the
        reader's context, which does not tell whose call it is."""
        named = RunnableConfig(**(config or {}))
        run_id = named.get("run_id") or uuid4()
        named["run_id"] = run_id
        if self.carrier is not None:
            self.carrier.expects(run_id, self._told())
        return named

    def _streamable(self) -> Route:
        if self.plan is None or self.plan.flow is None:
            return self
        self._missed("several requests cannot be streamed as events of version v3")
        return replace(self, plan=None)

    def _single(self) -> tuple[BaseChatModel, Any, Mapping[str, Any]]:
        """Returns model, input and arguments of the one request to send."""
        if self.plan is None:
            return self._serving(self.request.model, self.request), self.input, self.kwargs
        ask = self.plan.ask
        model = self._serving(ask.model, self.request)
        return model, list(ask.request.messages), ask.request.kwargs

    def _messages(self) -> list[BaseMessage]:
        sent = self.request.messages if self.plan is None else self.plan.ask.request.messages
        return list(sent)

    def _serving(self, model: BaseChatModel, request: Request) -> BaseChatModel:
        return model if self.carrier is None else self.carrier.serving(model, request)

    def _put_together(self, flow: Flow, config: RunnableConfig | None) -> AIMessage:
        """Returns the answer of several requests, each a child run of one run of ours."""

        def run(_: Any, config: RunnableConfig) -> AIMessage:
            failures: list[Exception] = []

            def ask(item: Ask) -> AIMessage:
                try:
                    return self._ask(item, config)
                except Exception as error:  # only noted here: the flow decides what it means
                    failures.append(error)
                    raise

            try:
                return drive(flow, ask)
            except Exception as error:  # an isolation boundary of production
                self._raise_unless_ours(error, failures)
                with sending(self.request):
                    return self.request.model.invoke(self.input, config, **self.kwargs)

        return RunnableLambda(run, name=self._name()).invoke(self.input, config)

    async def _aput_together(self, flow: Flow, config: RunnableConfig | None) -> AIMessage:
        """As `_put_together`, on the event loop."""

        async def run(_: Any, config: RunnableConfig) -> AIMessage:
            failures: list[Exception] = []

            async def ask(item: Ask) -> AIMessage:
                try:
                    return await self._aask(item, config)
                except Exception as error:  # as in `_put_together`
                    failures.append(error)
                    raise

            try:
                return await adrive(flow, ask)
            except Exception as error:  # as in `_put_together`
                self._raise_unless_ours(error, failures)
                with sending(self.request):
                    return await self.request.model.ainvoke(self.input, config, **self.kwargs)

        answer: AIMessage = await RunnableLambda(run, name=self._name()).ainvoke(self.input, config)
        return answer

    def _name(self) -> str:
        return f"adaseek:{self.request.step}"

    def _ask(self, item: Ask, config: RunnableConfig) -> AIMessage:
        asked = self._asked(item)
        model = self._serving(item.model, asked)
        with sending(asked):
            sent, kwargs = list(item.request.messages), item.request.kwargs
            return model.invoke(sent, _unstreamed(config), **kwargs)

    async def _aask(self, item: Ask, config: RunnableConfig) -> AIMessage:
        asked = self._asked(item)
        model = self._serving(item.model, asked)
        with sending(asked):
            sent, kwargs = list(item.request.messages), item.request.kwargs
            return await model.ainvoke(sent, _unstreamed(config), **kwargs)

    def _told(self) -> Request:
        """Returns what handlers are told of the one request: it names the model that answers."""
        if self.plan is None:
            return self.request
        ask = self.plan.ask
        return replace(self.request, step=ask.step, model=ask.model)

    def _asked(self, item: Ask) -> Request:
        # What follows is known of the step, not of one request among several for it.
        hint = self.request.hint and Hint(session=self.request.hint.session)
        return replace(self.request, step=item.step, model=item.model, hint=hint)

    def _raise_unless_ours(self, error: Exception, failures: Sequence[Exception]) -> None:
        """Raises `error` if a model raised it, or if nothing may be hidden; else counts it."""
        if not self.fails_open or any(error is failure for failure in failures):
            raise error
        self._missed(f"{type(error).__name__}: {error}")

    def _missed(self, reason: str) -> None:
        if self.carrier is not None:
            self.carrier.fail_open(self.request.step, reason)


def _entry(model: BaseChatModel, name: str, below: Below) -> Callable[..., Any]:
    """Returns the entry point `name` of `model`, below our own wrapper if there is one.

    Another instrumentor may have wrapped ours; it has seen this call already.
    """
    if below is not None and getattr(type(model), name) is getattr(BaseChatModel, name):
        return partial(below, model)
    entry: Callable[..., Any] = getattr(model, name)
    return entry


def _stepped(chunks: Iterator[Any], request: Request) -> Iterator[Any]:
    """Yields `chunks`, each made inside the call, none of the consumer's code run inside it."""
    thrown: BaseException | None = None
    source: Any = chunks  # a generator: closed and thrown into as without us
    try:
        while True:
            token = begin_sending(request)
            try:
                chunk = next(source) if thrown is None else source.throw(thrown)
            except StopIteration:
                return
            finally:
                end_sending(token)
            thrown = None
            try:
                yield chunk
            except GeneratorExit:
                raise
            except BaseException as error:  # handed on to the model's own generator
                thrown = error
    finally:
        source.close()


async def _astepped(chunks: AsyncIterator[Any], request: Request) -> AsyncGenerator[Any, None]:
    """As `_stepped`, for an async generator."""
    thrown: BaseException | None = None
    source: Any = chunks
    try:
        while True:
            token = begin_sending(request)
            try:
                chunk = await (anext(source) if thrown is None else source.athrow(thrown))
            except StopAsyncIteration:
                return
            finally:
                end_sending(token)
            thrown = None
            try:
                yield chunk
            except GeneratorExit:
                raise
            except BaseException as error:  # as in `_stepped`
                thrown = error
    finally:
        await source.aclose()


def _unstreamed(config: RunnableConfig) -> RunnableConfig:
    merged: RunnableConfig = merge_configs(config, {"tags": [_NO_STREAM]})
    return merged


def config_of(arguments: Mapping[str, Any]) -> RunnableConfig:
    """Returns the arguments of a `generate` (callbacks, tags ...) as a config."""
    config = RunnableConfig()
    for name in ("callbacks", "tags", "metadata", "run_name", "run_id"):
        if arguments.get(name) is not None:
            config[name] = arguments[name]
    return config


def _as_result(message: AIMessage) -> LLMResult:
    return LLMResult(generations=[[ChatGeneration(message=message)]])
