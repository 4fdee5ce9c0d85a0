"""The ChatML template: a model reads its earlier calls in the form in which it writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from adaseek_vllm.bare_json import CHATML_FLAGS, CallScanner, FoundCall

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def rendered(messages: list[dict[str, Any]], **variables: Any) -> str:
    """Returns the prompt, by an environment set up as transformers does it."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(Path(CHATML_FLAGS[1]).read_text(encoding="utf-8"))
    return template.render(messages=messages, **variables)


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look", "arguments": arguments}}


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def test_a_conversation_without_tools_is_plain_chatml() -> None:
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    system = {"role": "system", "content": "S"}
    talk = turn("user", "Q") + turn("assistant", "A")
    assert rendered([system, *messages]) == turn("system", "S") + talk
    assert rendered(messages).endswith(talk)
    opened = rendered([system, *messages], add_generation_prompt=True)
    assert opened == turn("system", "S") + talk + "<|im_start|>assistant\n"


def test_tools_are_described_behind_the_system_message() -> None:
    prompt = rendered([{"role": "system", "content": "S"}], tools=[TOOL])
    assert prompt.startswith("<|im_start|>system\nS\n\n# Tools\n")
    assert json.dumps(TOOL) in prompt.splitlines()


def test_an_earlier_call_is_shown_in_a_form_that_the_parser_reads_as_that_call() -> None:
    said = {"role": "assistant", "content": "Let me see.", "tool_calls": [call(q="ä"), call(n=1)]}
    prompt = rendered([{"role": "user", "content": "Q"}, said], tools=[TOOL])
    text = prompt.split("<|im_start|>assistant\n")[1].removesuffix("<|im_end|>\n")
    pieces = CallScanner(["look"]).feed(text, last=True)
    assert [json.loads(p.arguments) for p in pieces if isinstance(p, FoundCall)] == [
        {"q": "ä"},
        {"n": 1},
    ]
    assert text.startswith("Let me see.\n{")


def test_results_of_one_turn_share_a_message() -> None:
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "tool_calls": [call(), call()]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "3", "tool_calls": None},
    ]
    responses = "\n".join(f"<tool_response>\n{n}\n</tool_response>" for n in (1, 2))
    assert rendered(messages).endswith(turn("user", responses) + turn("assistant", "3"))
