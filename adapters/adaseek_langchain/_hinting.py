"""What a hook tells the model server beside its requests: session, expected tool, end."""

from __future__ import annotations

from typing import Any  # Any: requests are the provider's

from adaseek.forecast import Forecast
from adaseek.hints import Hint, is_name, may_be_told
from langchain_core.language_models.chat_models import BaseChatModel

from adaseek_langchain._recorder import Run, Tree

__all__ = ["Hinting", "add_to_requests", "takes_hints"]

_PAYLOAD = "_get_request_payload"
"""Builds the body of a request in `langchain_openai`: below LangChain's response cache, which must
not know one session from another. Where it is gone, nothing is told."""


class Hinting:
    """Gives each request the hint that belongs to it.

    Args:
        session: name of the conversation; None: each invocation is a session of its own, called
            by LangGraph's thread if there is one.
        foresees: whether to say what is expected to follow, too.
    """

    def __init__(self, session: str | None, *, foresees: bool) -> None:
        self._session = Hint(session=session or "").session
        self._forecast = Forecast() if foresees else None

    def hint(self, step: str, tree: Tree | None) -> Hint | None:
        """Returns what to tell with a request of `step` that `tree` makes now; None: nothing."""
        name = self._session or (tree.thread if tree is not None else "")
        is_own = not name
        if tree is None or self._forecast is None:
            # A bare model call is no session, unless it is said to belong to one.
            return Hint(session=name) if name else None
        visit = sum(run.step == step for run in tree.runs)
        name = name or str(tree.root.id)
        # A conversation goes on after an invocation.
        return self._forecast.hint(name, step, visit, may_end=is_own)

    def began(self, tree: Tree, metadata: dict[str, Any] | None) -> None:
        """Notes the thread that an invocation belongs to."""
        thread = str((metadata or {}).get("thread_id") or "")
        tree.thread = thread if is_name(thread) else ""

    def learn(self, tree: Tree) -> None:
        """Takes in a finished invocation."""
        if self._forecast is None:
            return
        done = [run for run in tree.runs if run.end_s is not None and run.error is None]
        tools = [(run.name, _seconds(run)) for run in done if run.kind == "tool"]
        turns = [run for run in done if run.kind == "lm"] if tree.root.error is None else []
        # An agent's way to structured output calls tools that nobody runs.
        ran = {name for name, _ in tools}
        called = [[name for name in _called(run) if name in ran] for run in turns]
        last_s = turns[-1].start_s if turns else 0.0
        self._forecast.learn(
            [(run.step, names) for run, names in zip(turns, called, strict=True)],
            tools,
            ends=all((run.end_s or 0.0) <= last_s for run in turns[:-1]),
        )


def _seconds(run: Run) -> float:
    return (run.end_s or run.start_s) - run.start_s


def _called(run: Run) -> list[str]:
    return [call["name"] for call in getattr(run.output, "tool_calls", None) or ()]


def takes_hints(model: BaseChatModel) -> bool:
    """Returns whether hints may ride in the body of the model's requests.

    Only to an OpenAI-compatible server that is given by URL, and not to the provider's own.
    """
    url = getattr(model, "openai_api_base", None)
    return hasattr(type(model), _PAYLOAD) and may_be_told(url)


def add_to_requests(model: BaseChatModel, hint: Hint) -> None:
    """Makes `model`, a copy made for one call, send `hint` beside what it sends."""
    build = getattr(model, _PAYLOAD)

    def payload(*args: Any, **kwargs: Any) -> Any:
        body = build(*args, **kwargs)
        return {**body, "extra_body": hint.added_to(body.get("extra_body") or {})}

    # Past pydantic, which lets no undeclared attribute be set.
    vars(model)[_PAYLOAD] = payload
