"""A model server that answers in the format that DSPy asks for, and programs to run against it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from adaseek.testing.loopback import LoopbackServer, Reply

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

dspy = pytest.importorskip("dspy")

_VALUES = {"int": "1", "float": "0.5", "bool": "False", "dict": "{}"}
"""Falsy values where a type has one: they are legal answers."""


def dspy_answer(body: Mapping[str, Any]) -> Reply:
    """Returns one value per output field that the system message names, as ChatAdapter wants."""
    messages = body["messages"]
    system = _text(messages[0])
    if body.get("tools"):
        return _tool_call(body)
    listed = re.search(r"Your output fields are:\n(.*?)\nAll interactions", system, re.DOTALL)
    if listed is None:
        return Reply(f"raw answer to {_text(messages[-1])[-40:]}")
    fields = re.findall(r"^\d+\. `(\w+)` \((.*?)\)", listed.group(1), re.MULTILINE)
    values = {name: _value(name, kind, messages) for name, kind in fields}
    if body.get("response_format") or "Outputs will be a JSON object" in system:
        return Reply(json.dumps({name: _loaded(value) for name, value in values.items()}))
    parts = [f"[[ ## {name} ## ]]\n{value}\n" for name, value in values.items()]
    return Reply("\n".join([*parts, "[[ ## completed ## ]]"]))


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content)


def _value(name: str, kind: str, messages: Sequence[Mapping[str, Any]]) -> str:
    last = _text(messages[-1])
    earlier = "".join(_text(message) for message in messages[1:])
    has_acted = "tool_name_0" in last or "observation" in last
    if name == "next_tool_name":
        return "finish" if has_acted else re.findall(r"'([^']+)'", kind)[0]
    if name == "next_tool_args":
        return "{}" if has_acted else '{"q": "x"}'
    if name == "tool_calls":
        has_result = '"name": "search"' in earlier
        chosen = ("submit", {"a": "final"}) if has_result else ("search", {"q": "x"})
        return json.dumps({"tool_calls": [{"name": chosen[0], "args": chosen[1]}]})
    if name == "code":
        return "```python\nSUBMIT(a='done')\n```"
    if name == "generated_code":
        return "```python\nprint(1)\n```"
    if kind.startswith("Literal"):
        return re.findall(r"'([^']+)'", kind)[0]
    if kind.startswith("list"):
        return '["a", "b"]'
    return next((v for k, v in _VALUES.items() if kind.startswith(k)), f"v-{name}")


def _loaded(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _tool_call(body: Mapping[str, Any]) -> Reply:
    if any(message["role"] == "tool" for message in body["messages"]):
        return Reply(tool_calls=[("submit", {"a": "final"})])
    return Reply(tool_calls=[("search", {"q": "x"})])


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(dspy_answer, models=("m", "m2", "m3")) as running:
        yield running


@pytest.fixture
def make_lm(server: LoopbackServer) -> Callable[..., Any]:
    def make(model: str = "openai/m", **settings: Any) -> Any:
        arguments = {"api_base": server.url, "api_key": "secret-key", "cache": False}
        return dspy.LM(model, **{**arguments, **settings})

    return make


@pytest.fixture
def lm(make_lm: Callable[..., Any]) -> Iterator[Any]:
    """The model of the test's context; DSPy's own configuration is left as it is."""
    made = make_lm()
    with dspy.context(lm=made, adapter=None, callbacks=[], trace=[]):
        yield made


@pytest.fixture
def two_steps() -> Any:
    """A program of two predictors, `a` and `c.predict`."""
    return TwoSteps()


class TwoSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = dspy.Predict("q -> x")
        self.c = dspy.ChainOfThought("x -> y")

    def forward(self, q: str) -> Any:
        return self.c(x=self.a(q=q).x)
