"""Examples, metrics and models of LangChain programs as core types, and the other way round."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any  # Any: examples, outputs and metrics belong to the user

import httpx
from adaseek._canonical import fingerprint
from adaseek.cogs.base import Completion
from adaseek.errors import EndpointError, ExampleError, MetricError
from adaseek.evaluation.base import Metric
from adaseek.evaluation.scoring import num_positional
from adaseek.workflow import Example, ModelRef, Trace
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import HumanMessage
from pydantic import SecretStr

from adaseek_langchain._messages import json_value
from adaseek_langchain._program import BARE_INPUT, input_names
from adaseek_langchain._reports import copied, model_reference, usage_of_message

__all__ = ["check_model", "complete", "core_example", "core_metric", "program_input"]

_CHECK_TIMEOUT_S = 5.0


def core_example(program: Any, raw: Any) -> Example:
    """Returns the user's example as a core example; equal examples get equal ids.

    Taken are `{"inputs": ..., "outputs": ...}` (LangSmith's form, also as its object), a pair
    (input, expected), and a flat mapping, of which the names in the program's input schema are
    inputs and the others labels.

    Raises:
        ExampleError: if none of them fits.
    """
    given, labels = _parts(program, raw)
    inputs = given if isinstance(given, Mapping) else {BARE_INPUT: given}
    plain: dict[str, Any] = json_value(dict(inputs))
    known: dict[str, Any] = json_value(dict(labels))
    return Example(
        id=fingerprint({"inputs": plain, "labels": known}), inputs=plain, labels=known, raw=raw
    )


def _parts(program: Any, raw: Any) -> tuple[Any, Mapping[str, Any]]:
    """Returns the program's input and the labels that an example holds."""
    if isinstance(raw, Mapping) and "inputs" in raw:
        rest = {name: value for name, value in raw.items() if name != "inputs"}
        outputs = rest.pop("outputs", None)
        return raw["inputs"], {**rest, **_named(outputs)}
    if hasattr(raw, "inputs") and hasattr(raw, "outputs") and not isinstance(raw, Mapping):
        return raw.inputs, _named(raw.outputs)
    if isinstance(raw, tuple | list) and len(raw) == 2:
        return raw[0], {"expected": raw[1]}
    if isinstance(raw, Mapping):
        return _flat_parts(program, raw)
    raise ExampleError(
        f"The example {_shown(raw)} is a {type(raw).__name__}. Give a mapping, "
        '{"inputs": ..., "outputs": ...}, or a pair (input, expected).'
    )


def _named(outputs: Any) -> dict[str, Any]:
    if outputs is None:
        return {}
    return dict(outputs) if isinstance(outputs, Mapping) else {"expected": outputs}


def _flat_parts(program: Any, raw: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    names = [name for name in input_names(program) if name in raw]
    if not names and BARE_INPUT in raw:
        return raw[BARE_INPUT], {n: v for n, v in raw.items() if n != BARE_INPUT}
    if not names:
        raise ExampleError(
            f"The example {_shown(raw)} does not say which of its fields are inputs, and the "
            'program\'s input schema names none of them. Write {"inputs": {...}, "outputs": '
            "{...}}."
        )
    inputs = {name: raw[name] for name in names}
    return inputs, {name: value for name, value in raw.items() if name not in inputs}


def program_input(program: Any, example: Example) -> Any:
    """Returns what to call the program with for `example`."""
    if example.raw is not None:
        given, _ = _parts(program, example.raw)
        return given
    if set(example.inputs) == {BARE_INPUT} and BARE_INPUT not in input_names(program):
        return example.inputs[BARE_INPUT]
    return dict(example.inputs)


def _shown(raw: Any, limit: int = 80) -> str:
    text = repr(raw)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def core_metric(metric: Callable[..., Any]) -> Metric:
    """Returns the user's metric `(example, output)` or `(example, output, trace)` over core types.

    Raises:
        MetricError: if the metric cannot be called with two arguments.
    """
    num_required, num_taken = num_positional(metric)
    name = getattr(metric, "__name__", type(metric).__name__)
    if num_required > 3 or num_taken < 2:
        raise MetricError(
            f"The metric `{name}` takes {max(num_required, num_taken)} arguments, but must take "
            "(example, output) or (example, output, trace)."
        )
    takes_trace = 3 <= num_taken < math.inf

    def scored(example: Example, trace: Trace) -> Any:
        raw = example.raw if example.raw is not None else {**example.inputs, **example.labels}
        return metric(raw, trace.output, trace) if takes_trace else metric(raw, trace.output)

    scored.__name__ = name
    return scored


def complete(model: BaseChatModel, prompt: str, *, seed: int, max_tokens: int) -> Completion:
    """Asks `model` the tuner's own `prompt`, past LangChain's response cache.

    Raises:
        EndpointError: if the endpoint does not answer, or refuses.
    """
    reference = model_reference(model)
    fields = type(model).model_fields
    arguments: dict[str, Any] = {"max_tokens": max_tokens} if "max_tokens" in fields else {}
    if reference.endpoint and "seed" in fields:
        arguments["seed"] = seed
    try:
        answer = copied(model, {"cache": False}).invoke([HumanMessage(prompt)], **arguments)
    except Exception as error:  # any provider's own exception type
        raise EndpointError(
            f"The model {reference.key} did not answer the tuner's own prompt: "
            f"{type(error).__name__}: {error}. {check_model(model) or ''}".rstrip()
        ) from error
    return Completion(text=str(answer.text), usage=usage_of_message(answer))


def check_model(model: BaseChatModel | ModelRef) -> str | None:
    """Returns why `model` cannot be called now, or None.

    Only endpoints given by URL are asked (for their list of models): a provider's own endpoint
    would need the key, and asking might cost money.
    """
    reference = model if isinstance(model, ModelRef) else model_reference(model)
    if not reference.endpoint:
        return None
    secret = None if isinstance(model, ModelRef) else getattr(model, "openai_api_key", None)
    key = secret.get_secret_value() if isinstance(secret, SecretStr) else None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{reference.endpoint}/models"
    try:
        response = httpx.get(url, headers=headers, timeout=_CHECK_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError as error:
        return f"{reference.endpoint} does not answer ({type(error).__name__}: {error})"
    if response.status_code in (401, 403):
        return f"{reference.endpoint} refuses the key (HTTP {response.status_code})"
    served = _served(response)
    # Another framework's references say the provider first.
    if served is None or {reference.id, reference.id.partition("/")[2]} & set(served):
        return None
    listed = ", ".join(served) or "nothing"
    return f"{reference.endpoint} does not serve `{reference.id}`; it serves {listed}"


def _served(response: httpx.Response) -> list[str] | None:
    if response.status_code != 200:
        return None  # a server without this route can still serve completions
    try:
        return [str(model["id"]) for model in response.json()["data"]]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
