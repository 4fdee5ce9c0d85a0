"""Tool calls in the formats of vLLM's parsers, bare JSON calls, and text that is neither."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from adaseek_vllm.retention.tool_calls import ToolCall, find_tool_call, tool_call_at_end
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            'I look.\n<tool_call>\n{"name": "search", "arguments": {"q": "x"}}\n</tool_call>',
            "search",
        ),
        ("<tool_call>\n<function=get_time>\n<parameter=zone>UTC</parameter>", "get_time"),
        ("<function=get_time>{}</function>", "get_time"),
        ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]', "add"),
        ('[TOOL_CALLS]add{"a": 1}', "add"),
        ('<|python_tag|>{"name": "run", "parameters": {}}', "run"),
        ("<|tool_call_start|>[lookup(key='a')]<|tool_call_end|>", "lookup"),
        ("<\uff5ctool\u2581calls\u2581begin\uff5c>", ""),
        ('{"name": "search", "arguments": {"q": "x"}}', "search"),
        ('```json\n{"name": "search", "arguments": {"q": "x"}}\n```', "search"),
        ('[{"name": "search", "parameters": {"q": "x"}}]', "search"),
    ],
)
def test_calls_and_their_names(text: str, name: str) -> None:
    assert find_tool_call(text) == ToolCall(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The answer is 4.",
        '{"name": "Ada", "age": 36}',
        'A call looks like {"name": "f", "arguments": {}} and is then answered.',
        "Use the functools module [1].",
    ],
)
def test_plain_answers(text: str) -> None:
    assert find_tool_call(text) is None


def test_end_of_turn_token_does_not_hide_a_bare_call() -> None:
    words = ['{"name": "add", ', '"arguments": {}}', "<|im_end|>"]

    def text_of(token_ids: Sequence[int]) -> str:
        return "".join(words[token] for token in token_ids)

    assert tool_call_at_end([0, 1, 2], text_of) == ToolCall("add")
    assert tool_call_at_end([0, 1], text_of) == ToolCall("add")
    assert tool_call_at_end([0, 2], text_of) is None
    assert tool_call_at_end([], text_of) is None


@given(st.text(alphabet='<>|{}[]"\\:, \n`abtool_call=function', max_size=300))
def test_any_text_is_taken(text: str) -> None:
    call = find_tool_call(text)
    assert call is None or len(call.name) <= 128
