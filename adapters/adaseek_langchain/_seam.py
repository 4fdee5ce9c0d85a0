"""The seam between the handler that observes and the interposition that rewrites requests.

The interposition wraps the entry points of chat models. For each call it looks for a `Carrier`
among the callbacks, asks it which step starts now, rewrites the request as the carrier's recipe
says, and sends it under `sending(...)`, so that the callbacks of the call know whose it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any  # Any: the arguments of a chat model are those of its provider
from uuid import UUID

from adaseek.hints import Hint
from adaseek.recipe import Recipe
from adaseek.workflow import Step
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.tracers.context import register_configure_hook

__all__ = [
    "INPUT",
    "MODEL_RUN",
    "OUTPUT",
    "TOOL_CALLS",
    "Carrier",
    "Request",
    "active",
    "active_carrier",
    "begin_sending",
    "current_request",
    "end_sending",
    "is_inside",
    "messages_of",
    "sending",
]

INPUT, OUTPUT, TOOL_CALLS = "input", "output", "tool_calls"
"""Fields of every chat-model step: what it is sent behind its leading system messages (text, or a
list of messages), the text that it answers, and the tools that it calls."""


def messages_of(given: Any) -> list[BaseMessage] | None:
    """Returns a chat model's input as messages; None if it is none."""
    try:
        if isinstance(given, PromptValue):
            return given.to_messages()
        return [HumanMessage(given)] if isinstance(given, str) else convert_to_messages(given)
    except (NotImplementedError, TypeError, ValueError):
        return None


# Neither frozen nor with a `messages` worked out at once: one is made for every model call that
# is observed, and most are never looked at.
@dataclass(slots=True, eq=False)
class Request:
    """One call of a chat model as the program made it, before anything was rewritten.

    Attributes:
        step: the id of its step, or `member_id(step, i)` inside an ensemble.
        given: what the program sends, in any form that a chat model takes; a list is copied, for
            the program may change it later. What is tuned in addition is not part of it.
        kwargs: bound and given arguments (tools, response_format, stop ...).
        frame: the identity of the frame of the user's code that made the call, 0 if unknown.
        hint: what to tell the model server beside it; None: nothing.
    """

    step: str
    model: BaseChatModel
    given: Any
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    frame: int = 0
    hint: Hint | None = None
    _messages: tuple[BaseMessage, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.given, list):
            self.given = tuple(self.given)
        elif isinstance(self.given, ChatPromptValue):
            self.given = tuple(self.given.messages)

    @property
    def messages(self) -> tuple[BaseMessage, ...]:
        """What is sent, as messages."""
        if self._messages is None:
            self._messages = tuple(messages_of(self.given) or ())
        return self._messages


MODEL_RUN: ContextVar[UUID | None] = ContextVar("adaseek_langchain_run", default=None)
"""The run whose model, tool or retriever is called now: not every method is told its run."""

_ACTIVE: ContextVar[Carrier | None] = ContextVar("adaseek_langchain_active", default=None)
# LangChain adds what this holds to the callbacks of each run that begins in the context.
register_configure_hook(_ACTIVE, inheritable=True)

_REQUEST: ContextVar[Request | None] = ContextVar("adaseek_langchain_request", default=None)


@contextmanager
def active(carrier: Carrier) -> Iterator[None]:
    """Makes `carrier` see every run that begins in this context, also where a config is dropped."""
    token = _ACTIVE.set(carrier)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active_carrier() -> Carrier | None:
    """Returns the carrier that sees everything in this context, or None."""
    return _ACTIVE.get()


def begin_sending(request: Request) -> Token[Request | None]:
    """Makes `request` the one that chat-model callbacks belong to, until `end_sending`."""
    return _REQUEST.set(request)


def end_sending(token: Token[Request | None]) -> None:
    """Ends what `begin_sending` began."""
    _REQUEST.reset(token)


@contextmanager
def sending(request: Request) -> Iterator[None]:
    """Makes `request` the one that chat-model callbacks inside belong to.

    In a generator, enter it around each step of the wrapped iterator, never across a `yield`:
    a context variable set across a `yield` would leak into the consumer's code.
    """
    token = _REQUEST.set(request)
    try:
        yield
    finally:
        _REQUEST.reset(token)


def current_request() -> Request | None:
    """Returns the request that is being sent in this context, or None."""
    return _REQUEST.get()


def is_inside() -> bool:
    """Returns whether this context runs inside a call that was dealt with.

    What such a call calls itself is not looked at again.
    """
    return _REQUEST.get() is not None


class Carrier(BaseCallbackHandler):
    """A callback handler that carries a recipe into the calls below it."""

    run_inline = True  # else async programs run sync handlers in other threads, out of order

    needs_all = False
    """Whether a failed member fails its ensemble: true of trials, which must not hide an outage."""

    decides_alone = False
    """Whether no other carrier has a say in its calls, whatever recipe that has: true of probes,
    which must ask no model, and of trials, whose outcome must be their own recipe's."""

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """The recipe to apply; an empty one leaves every request as it is."""

    @abstractmethod
    def step(self, step: str) -> Step | None:
        """Returns the step `step` as translated, if it is known (`step` names no member)."""

    @property
    @abstractmethod
    def models(self) -> Mapping[str, Any]:
        """Model key -> chat model, for settings that name a model."""

    @property
    @abstractmethod
    def rewards(self) -> Mapping[str, Any]:
        """Name -> reward function, for `best_of` ensembles."""

    @abstractmethod
    def request(
        self,
        model: BaseChatModel,
        given: Any,
        kwargs: Mapping[str, Any],
        config: RunnableConfig,
    ) -> Request:
        """Returns the call that starts now as a request of its step.

        Must be called from the frame of the wrapped entry point: the place in the user's code is
        part of a step's id. Of `config`, callbacks and tags count, as `effective_config` finds
        them.
        """

    @abstractmethod
    def serving(self, model: BaseChatModel, request: Request) -> BaseChatModel:
        """Returns the model to really call in place of `model` for `request` (often itself).

        The twin keeps usage complete in streams, tells the server what goes with the request,
        answers from a tuning run's memo and waits at its gate. To be asked for each call of the
        wrapped entry points, also inside ensembles.
        """

    def expects(self, run_id: UUID, request: Request) -> None:
        """Notes that the run `run_id`, which begins later, is a call of `request`."""

    @abstractmethod
    def fail_open(self, step: str, reason: str) -> None:
        """Counts a request that was sent as the program made it, though a recipe wanted more."""
