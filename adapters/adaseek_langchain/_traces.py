"""What was recorded of an invocation, as a `Trace`: worked out when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple  # Any: inputs and outputs belong to the user's program
from uuid import UUID

from adaseek.evaluation.latency import critical_path
from adaseek.workflow import Call, ModelRef, Trace, Usage
from langchain_core.messages import BaseMessage

from adaseek_langchain._compat import is_pause
from adaseek_langchain._errors import error_kind
from adaseek_langchain._messages import answer_fields, input_fields, json_value
from adaseek_langchain._recorder import Run, Tree
from adaseek_langchain._reports import is_from_cache, model_reference, reference_from, usage_of

__all__ = ["model_of", "trace_of"]

Priced = Callable[[ModelRef, Usage, float], Usage]
"""Model, usage and seconds of a call -> the usage with its cost."""

_PLUMBING = frozenset({"prompt", "parser"})
_HIDDEN = "langsmith:hidden"

Inside = Mapping[UUID, Sequence[Run]]
"""Id of a run -> the runs that it made, in their order."""


class _Reader(NamedTuple):
    """What it takes to read the runs of one invocation: its start, the runs shown, and who made
    whom."""

    start_s: float
    shown: Mapping[UUID, Run]
    inside: Inside


def _children(tree: Tree) -> Inside:
    inside: dict[UUID, list[Run]] = {run.id: [] for run in tree.runs}
    for run in tree.runs:
        if run.parent is not None:
            inside[run.parent.id].append(run)
    return inside


def model_of(run: Run) -> ModelRef:
    """Returns the model that `run` calls."""
    if run.request is not None:
        return model_reference(run.request.model)
    return reference_from(run.settings or {})


def trace_of(tree: Tree, priced: Priced) -> Trace:
    """Returns what happened in `tree`, a finished invocation; worked out once, then kept."""
    if tree.trace is None:
        tree.trace = _trace(tree, priced)
    return tree.trace


def _trace(tree: Tree, priced: Priced) -> Trace:
    inside = _children(tree)
    shown = {run.id: run for run in tree.runs if run.kind is not None}
    shown |= {run.id: run for run in _code(tree.root, inside)}
    reader = _Reader(tree.start_s, shown, inside)
    calls = tuple(_call(run, reader, priced) for run in tree.runs if run.id in shown)
    error = tree.root.error
    failed = error is not None and not is_pause(error)
    return Trace(
        calls=calls,
        output=None if failed else tree.root.output,
        latency_s=critical_path(calls),
        error=f"{type(error).__name__}: {error}" if failed else None,
        error_kind=error_kind(error) if error is not None and failed else None,
        id=str(tree.root.id),
    )


def _call(run: Run, tree: _Reader, priced: Priced) -> Call:
    start_s = run.start_s - tree.start_s
    end_s = (run.end_s or run.start_s) - tree.start_s
    error = None if run.error is None or is_pause(run.error) else run.error
    call = Call(
        id=str(run.id),
        step=run.step or _place(run),
        parent=_enclosing(run, tree.shown),
        kind=run.kind or "code",
        start_s=start_s,
        end_s=end_s,
        duration_s=end_s - start_s + _saved_s(run, tree.inside),
        inputs=_inputs(run),
        outputs=_outputs(run),
        error=f"{type(error).__name__}: {error}" if error is not None else None,
    )
    return _model_call(run, call, priced) if run.kind == "lm" else call


def _model_call(run: Run, call: Call, priced: Priced) -> Call:
    model = model_of(run)
    start_s = min(call.start_s + run.waited_s, call.end_s)
    duration_s, cached = call.end_s - start_s, False
    if run.replayed is not None:
        (usage, duration_s), cached = run.replayed, True
    elif run.report is not None:
        usage, cached = usage_of(*run.report), is_from_cache(run.report[0])
        duration_s = 0.0 if cached else duration_s
    else:
        # Abandoned half-way, the server has worked; refused, it has not.
        usage = Usage(requests=1 if run.first_token_s is not None else 0, cost_usd=None)
    first_s = run.first_token_s
    return replace(
        call,
        model=model,
        start_s=start_s,
        duration_s=duration_s,
        usage=priced(model, usage, duration_s),
        cached=cached,
        first_token_s=None if first_s is None else first_s - run.start_s,
    )


def _code(root: Run, inside: Inside) -> Iterator[Run]:
    """Yields the outermost runs of the user's own code that make no other call."""
    for run in inside[root.id]:
        if run.kind is not None or _works(run, inside) or _is_plumbing(run):
            yield from _code(run, inside)
        else:
            yield run


def _works(run: Run, inside: Inside) -> bool:
    return run.kind is not None or any(_works(child, inside) for child in inside[run.id])


def _is_plumbing(run: Run) -> bool:
    is_structure = run.name.startswith("Runnable") and not run.name.startswith("RunnableLambda")
    return is_structure or run.run_type in _PLUMBING or _HIDDEN in run.tags or not run.path


def _place(run: Run) -> str:
    """Returns the step id of a retriever, or of the user's own code."""
    is_bare = run.kind is None and run.name.startswith("Runnable")
    return "/".join(run.path) + (".code" if is_bare else "") if run.path else run.name


def _enclosing(run: Run, shown: Mapping[UUID, Run]) -> str | None:
    parent = run.parent
    while parent is not None and parent.id not in shown:
        parent = parent.parent
    return str(parent.id) if parent is not None else None


def _saved_s(run: Run, inside: Inside) -> float:
    """Returns how much longer `run` takes if no request inside is answered from a memo."""
    saved = 0.0
    for child in inside[run.id]:
        if child.replayed is not None and child.end_s is not None:
            saved += child.replayed[1] - (child.end_s - child.start_s)
        saved += _saved_s(child, inside)
    return max(saved, 0.0)


def _inputs(run: Run) -> dict[str, Any]:
    if run.kind == "lm":
        messages: Sequence[BaseMessage] = run.request.messages if run.request else run.given
        return input_fields(messages)
    if isinstance(run.given, Mapping):
        return {str(name): json_value(value) for name, value in run.given.items()}
    return {"input": json_value(run.given)}


def _outputs(run: Run) -> dict[str, Any]:
    if run.error is not None or run.output is None:
        return {}
    if run.kind == "lm":
        return answer_fields(run.output, always_tools=bool((run.parameters or {}).get("tools")))
    content = getattr(run.output, "content", run.output)
    return {"result": json_value(content)}
