"""Runs a program under a recipe on one example and returns what happened."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any  # Any: programs, inputs and outputs are the user's

from adaseek.errors import ConfigurationError
from adaseek.evaluation.base import RunContext
from adaseek.evaluation.latency import critical_path
from adaseek.recipe import Recipe
from adaseek.workflow import Example, Trace, Workflow
from langchain_core.language_models.chat_models import BaseChatModel

from adaseek_langchain._convert import program_input
from adaseek_langchain._copying import copy_with_models
from adaseek_langchain._errors import error_kind
from adaseek_langchain._program import as_program, isolated, own_copy
from adaseek_langchain._recorder import Recorder
from adaseek_langchain._reports import copied
from adaseek_langchain._seam import Request, active
from adaseek_langchain._served import Served
from adaseek_langchain._walk import Walk, walk
from adaseek_langchain.hook import AdaSeekHook

__all__ = ["run"]


def run(
    program: Any, workflow: Workflow, recipe: Recipe, example: Example, context: RunContext
) -> Trace:
    """Returns the trace of one run of `program` under `recipe` on `example`.

    The program itself runs, with a hook of its own; a graph that remembers does so in a memory
    of this run.

    Raises:
        ConfigurationError: if a setting cannot be applied. Failures of the run itself are
            returned in the trace.
    """
    runnable = as_program(program)
    found = walk(runnable)
    hook = _RunHook(recipe, workflow, context)
    given = own_copy(program_input(runnable, example))
    runnable, config = isolated(_carrying(runnable, found, hook), [hook])
    output, error = None, None
    with active(hook):
        try:
            if found.async_only:
                output = _on_loop(runnable, given, config)
            else:
                output = runnable.invoke(given, config)
        except Exception as raised:
            # The isolation boundary of a run: whatever the program raises is its result.
            error = raised
    if hook.misses:
        raise ConfigurationError(
            "The recipe cannot be applied to this program: " + "; ".join(sorted(hook.misses)) + "."
        )
    return _trace(hook, output, error, f"{recipe.fingerprint}/{example.id}/{context.replicate}")


def _trace(hook: AdaSeekHook, output: Any, error: Exception | None, name: str) -> Trace:
    """Returns everything that the run's hook saw as one trace."""
    traces = hook.traces
    calls = tuple(call for trace in traces for call in trace.calls)
    return Trace(
        calls=calls,
        output=output,
        latency_s=critical_path(calls),
        error=f"{type(error).__name__}: {error}" if error is not None else None,
        error_kind=error_kind(error) if error is not None else None,
        id=name,
    )


class _RunHook(AdaSeekHook):
    """The hook of one workflow run: its models answer from the memo, or ask through the gate."""

    decides_alone = True
    needs_all = True

    def __init__(self, recipe: Recipe, workflow: Workflow, context: RunContext) -> None:
        super().__init__(recipe, models=context.models, rewards=context.rewards, workflow=workflow)
        self._recorder = Recorder(1000, context.price, adopts=True)
        self._served = Served(context, self._recorder)

    def serving(self, model: BaseChatModel, request: Request) -> BaseChatModel:
        return self._served.twin(super().serving(model, request))

    def fail_open(self, step: str, reason: str) -> None:
        # No warning: the run ends with an error, since its outcome would be another config's.
        self.misses[f"`{step}`: {reason}"] += 1


def _carrying(program: Any, found: Walk, hook: AdaSeekHook) -> Any:
    """Returns `program`; if it starts threads of its own, a copy whose models carry the hook."""
    if not found.starts_threads or isinstance(program, BaseChatModel):
        return program
    return copy_with_models(program, lambda m: copied(m, {"callbacks": [hook]})).obj


def _on_loop(program: Any, given: Any, config: Any) -> Any:
    """Runs an async program; all of them on one event loop, to which their clients belong.

    A client whose loop has been closed answers the next request by an error and a retry.
    """
    return asyncio.run_coroutine_threadsafe(program.ainvoke(given, config), _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="adaseek-async", daemon=True).start()
    return loop
