"""Turns DSPy's examples, metrics and language models into core types."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any  # Any: examples, predictions and metrics belong to the user
from urllib.parse import urlsplit, urlunsplit

import dspy
import httpx
from adaseek._canonical import canonical_json, fingerprint
from adaseek.cogs.base import Completion
from adaseek.errors import EndpointError, ExampleError, MetricError
from adaseek.evaluation.base import Metric
from adaseek.evaluation.scoring import num_positional
from adaseek.workflow import Example, ModelRef, Trace
from pydantic import BaseModel

from adaseek_dspy._compat import BaseLM, usage_of

__all__ = [
    "check_model",
    "complete",
    "core_example",
    "core_metric",
    "json_value",
    "model_reference",
]

_CHECK_TIMEOUT_S = 5.0


def model_reference(lm: Any) -> ModelRef:
    """Returns the model's name and base URL; never a key, a header or a password in the URL."""
    settings = getattr(lm, "kwargs", None) or {}
    base = settings.get("api_base") or settings.get("base_url") or ""
    return ModelRef(id=str(getattr(lm, "model", type(lm).__name__)), endpoint=_public(str(base)))


def _public(url: str) -> str:
    if not url:
        return ""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def json_value(value: Any) -> Any:
    """Returns `value` as JSON values: pydantic objects dumped, tuples and sets as lists.

    Raises:
        TypeError: if `value` has no JSON form.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, BaseModel):
        return _dumped(value)
    if isinstance(value, dspy.Example | dspy.Prediction):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((json_value(item) for item in value), key=canonical_json)
    raise TypeError(type(value).__name__)


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise TypeError(f"float {value}")
    return value


def _dumped(value: BaseModel) -> Any:
    """Returns the fields of a pydantic object.

    Not `model_dump`: DSPy's own types give it a form for prompts, which cannot be read back.
    """
    return {
        name: json_value(getattr(value, name))
        for name in type(value).model_fields
        if not callable(getattr(value, name))
    }


def core_example(raw: Any) -> Example:
    """Returns a `dspy.Example` as a core example; equal examples get equal ids.

    Raises:
        ExampleError: if the inputs are not declared, or a value has no JSON form.
    """
    try:
        names = set(raw.inputs().keys())
    except ValueError:
        raise ExampleError(
            f"The example {_shown(raw)} does not say which fields are inputs. "
            "Call .with_inputs('question', ...) on it."
        ) from None
    values = {name: _field(name, value) for name, value in raw.items()}
    inputs = {name: value for name, value in values.items() if name in names}
    labels = {name: value for name, value in values.items() if name not in names}
    return Example(
        id=fingerprint({"inputs": inputs, "labels": labels}), inputs=inputs, labels=labels, raw=raw
    )


def _field(name: str, value: Any) -> Any:
    try:
        return json_value(value)
    except TypeError as error:
        raise ExampleError(
            f"The field `{name}` of an example holds a {type(value).__name__} that has no JSON "
            f"form ({error}). Turn it into text, numbers, lists, dicts or a pydantic object before "
            "tuning, e.g. with isoformat(), tolist() or str()."
        ) from None


def _shown(raw: Any, limit: int = 80) -> str:
    text = repr(raw)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def core_metric(metric: Callable[..., Any]) -> Metric:
    """Returns the user's DSPy metric over core types.

    Both of DSPy's forms are taken: `(example, prediction, trace=None)` and GEPA's
    `(gold, pred, trace, pred_name, pred_trace)`. `trace` is always None, which means "score an
    evaluation" (some metrics return a stricter yes or no when they are given a trace).

    Raises:
        MetricError: if the metric cannot be called with two arguments.
    """
    num_required, num_taken = num_positional(metric)
    name = getattr(metric, "__name__", type(metric).__name__)
    if num_required > 5 or num_taken < 2:
        raise MetricError(
            f"The metric `{name}` takes {max(num_required, num_taken)} arguments, but must take "
            "(example, prediction, trace=None) or (gold, pred, trace, pred_name, pred_trace)."
        )
    rest = (None,) * max(0, num_required - 2)

    def scored(example: Example, trace: Trace) -> Any:
        return metric(example.raw, trace.output, *rest)

    scored.__name__ = name
    return scored


def complete(lm: Any, prompt: str, *, seed: int, max_tokens: int) -> Completion:
    """Asks `lm` the tuner's own `prompt`, past DSPy's response cache.

    Two seeds give two draws: the seed is sent as the rollout id, and as `seed` to endpoints that
    the user hosts.

    Raises:
        EndpointError: if the endpoint does not answer, or refuses.
    """
    arguments: dict[str, Any] = {"max_tokens": max_tokens}
    if isinstance(lm, dspy.LM):
        arguments["cache"] = False
        if model_reference(lm).endpoint:
            arguments["seed"] = seed
    tracker = _Tracker()
    try:
        with dspy.context(usage_tracker=tracker):
            answers = lm(prompt, **arguments)
    except Exception as error:  # any transport's own exception type, by version and provider
        raise EndpointError(
            f"The model {model_reference(lm).key} did not answer the tuner's own prompt: "
            f"{type(error).__name__}: {error}. {check_model(lm) or ''}".rstrip()
        ) from error
    first = answers[0] if answers else ""
    text = first.get("text") if isinstance(first, Mapping) else first
    return Completion(text=str(text or ""), usage=usage_of(tracker.entry, requests=1))


class _Tracker:
    """Receives the one usage report of a single call."""

    def __init__(self) -> None:
        self.entry: Mapping[str, Any] = {}

    def add_usage(self, _lm: str, entry: Mapping[str, Any]) -> None:
        self.entry = entry or self.entry


def check_model(lm: Any) -> str | None:
    """Returns why `lm` cannot be called now, or None.

    Only endpoints given by URL are asked (for their list of models): a provider's own endpoint
    would need the key, and asking might cost money.
    """
    if not isinstance(lm, BaseLM):
        return f"it is a {type(lm).__name__}, not a dspy.LM"
    reference = model_reference(lm)
    if not reference.endpoint:
        return None
    key = (lm.kwargs or {}).get("api_key")
    headers = {"Authorization": f"Bearer {key}"} if isinstance(key, str) else {}
    url = f"{reference.endpoint}/models"
    try:
        response = httpx.get(url, headers=headers, timeout=_CHECK_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        return f"{reference.endpoint} does not answer ({type(error).__name__}: {error})"
    if response.status_code in (401, 403):
        return f"{reference.endpoint} refuses the key (HTTP {response.status_code})"
    return _not_served(reference, _served(response))


def _served(response: httpx.Response) -> list[str] | None:
    if response.status_code != 200:
        return None  # a server without this route can still serve completions
    try:
        listed = response.json()["data"]
        return [str(model["id"]) for model in listed]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def _not_served(reference: ModelRef, served: list[str] | None) -> str | None:
    if served is None:
        return None
    name = reference.id.partition("/")[2] or reference.id
    if name in served or reference.id in served:
        return None
    return (
        f"{reference.endpoint} does not serve `{name}`; it serves {', '.join(served) or 'nothing'}"
    )
