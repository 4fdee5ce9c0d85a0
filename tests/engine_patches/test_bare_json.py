"""Tool calls that a model writes as plain JSON: found whole, in streams, and by a real engine."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from adaseek_vllm.bare_json import TOOL_FLAGS, CallScanner, FoundCall
from hypothesis import given
from hypothesis import strategies as st

TOOLS = ("sql", "calculator")
SQL = FoundCall("sql", '{"q": "x"}')
ADD = FoundCall("calculator", '{"e": "1+1"}')


def split(text: str, *cuts: int, tools: tuple[str, ...] = TOOLS) -> tuple[str, list[FoundCall]]:
    """Returns (text, calls) of a reply that arrives cut at the given places."""
    scanner = CallScanner(tools)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [piece for start, end in pairwise(places) for piece in scanner.feed(text[start:end])]
    pieces += scanner.feed("", last=True)
    words = "".join(piece for piece in pieces if isinstance(piece, str))
    return words, [piece for piece in pieces if isinstance(piece, FoundCall)]


@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        ('{"name": "sql", "arguments": {"q": "x"}}', "", [SQL]),
        ('```json\n{"name": "sql", "arguments": {"q": "x"}}\n```', "", [SQL]),
        ('```\n{"name": "sql", "parameters": {"q": "x"}}\n```', "", [SQL]),
        ('<tool_call>\n{"name": "sql", "arguments": {"q": "x"}}\n</tool_call>', "", [SQL]),
        ('{"arguments": {"q": "x"}, "name": "sql"}', "", [SQL]),
        ('{"name": "sql", "arguments": "{\\"q\\": \\"x\\"}"}', "", [SQL]),
        (
            '{"type": "function", "function": {"name": "sql", "arguments": {"q": "x"}}}',
            "",
            [SQL],
        ),
        (
            'I look.\n{"name": "sql", "arguments": {"q": "x"}}\nDone.',
            "I look.\n\nDone.",
            [SQL],
        ),
        (
            '```json\n{"name": "sql", "arguments": {"q": "x"}}\n'
            '{"name": "calculator", "arguments": {"e": "1+1"}}\n```\nDone.',
            "\nDone.",
            [SQL, ADD],
        ),
        (
            '[{"name": "sql", "arguments": {"q": "x"}},'
            ' {"name": "calculator", "arguments": {"e": "1+1"}}]',
            "",
            [SQL, ADD],
        ),
        (
            '```json\n{"name": "sql", "arguments": {"q": "x"}}\n```\n'
            '```json\n{"name": "calculator", "arguments": {"e": "1+1"}}\n```',
            "\n",
            [SQL, ADD],
        ),
    ],
)
def test_a_call_is_found_however_it_is_wrapped(
    text: str, words: str, calls: list[FoundCall]
) -> None:
    assert split(text) == (words, calls)
    assert split(text, *range(len(text))) == (words, calls)


@pytest.mark.parametrize(
    "text",
    [
        "No JSON at all.",
        '{"answer": 42}',
        '```json\n{"answer": {"name": 1}}\n```',
        '{"name": "unknown", "arguments": {}}',  # no tool of this request
        '{"name": "sql"}',
        '{"name": "sql", "arguments": [1]}',
        '{"name": "sql", "arguments": "no JSON"}',
        '{"name": "sql", "arguments": {"q": ',  # ended in the middle
        '[{"name": "sql", "arguments": {}}, 7]',
        "```python\nd = {}\n```",
        '{"name": "sql", "arguments": {"q": oops}}',
        "use `x`, then ``` and <tool_call",
        "{",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert split(text) == (text, [])
    assert split(text, *range(len(text))) == (text, [])


def test_line_breaks_and_braces_within_strings_belong_to_the_arguments() -> None:
    text = '{"name": "sql", "arguments": {"q": "a\n} \\" ] b"}}'
    (call,) = split(text)[1]
    assert json.loads(call.arguments) == {"q": 'a\n} " ] b'}


def test_without_tools_nothing_is_a_call() -> None:
    text = '{"name": "sql", "arguments": {}}'
    assert split(text, tools=()) == (text, [])


def test_text_is_not_kept_back_longer_than_needed() -> None:
    scanner = CallScanner(TOOLS)
    assert scanner.feed("Let me see") == ["Let me see"]
    assert "".join(map(str, scanner.feed(' {"answer": 1'))) == ' {"answer": 1'
    assert scanner.feed(' {"na') == [" "]
    assert scanner.feed('me": "sql", "arguments": {}}') == [FoundCall("sql", "{}")]


FRAGMENTS = st.sampled_from(
    [
        '{"name": "sql", "arguments": {"q": "x"}}',
        '{"name": "other", "arguments": {}}',
        '{"a": [1, {"b": "}"}]}',
        *("```json\n", "```", "<tool_call>", "</tool_call>", "\n", " ", ",", "[", "]", "{", "}"),
        *('"', "\\", "text", '{"name"'),
    ]
)


@given(st.lists(FRAGMENTS, max_size=8).map("".join), st.lists(st.integers(0, 200), max_size=6))
def test_the_cuts_of_a_stream_change_nothing(text: str, cuts: list[int]) -> None:
    assert split(text, *cuts) == split(text)


@given(st.text(alphabet='{}[]"`<>,:\\ \nabt', max_size=60))
def test_text_without_a_call_is_kept_to_the_letter(text: str) -> None:
    assert split(text) == (text, [])


def request(*names: str, choice: str = "auto") -> Any:
    tools = [
        SimpleNamespace(type="function", function=SimpleNamespace(name=name)) for name in names
    ]
    return SimpleNamespace(tools=tools, tool_choice=choice)


@pytest.fixture(scope="module")
def parser_class() -> Any:
    pytest.importorskip("vllm")
    from adaseek_vllm.bare_json_tool_parser import BareJsonToolParser

    return BareJsonToolParser


REPLY = 'I look.\n```json\n{"name": "sql", "arguments": {"q": "x"}}\n```'


def test_the_parser_is_registered_with_vllm(parser_class: Any) -> None:
    from vllm.tool_parsers.abstract_tool_parser import ToolParserManager

    assert ToolParserManager.get_tool_parser("bare_json") is parser_class


def test_a_whole_reply_becomes_content_and_calls(parser_class: Any) -> None:
    found = parser_class(None).extract_tool_calls(REPLY, request("sql"))
    assert found.tools_called
    assert found.content == "I look."
    assert [(call.function.name, call.function.arguments) for call in found.tool_calls] == [
        ("sql", '{"q": "x"}')
    ]


def test_a_reply_without_a_call_is_returned_unchanged(parser_class: Any) -> None:
    found = parser_class(None).extract_tool_calls(REPLY, request("sql", choice="none"))
    assert (found.tools_called, found.content) == (False, REPLY)


@pytest.mark.parametrize("tail", ["", "\nand then {"])
def test_a_stream_has_the_same_calls_and_loses_no_text(parser_class: Any, tail: str) -> None:
    parser = parser_class(None)
    messages = [
        parser.extract_tool_calls_streaming("", "", letter, (), (), (), request("sql"))
        for letter in REPLY * 2 + tail
    ]
    messages = [message for message in [*messages, parser.finish_streaming()] if message]
    calls = [call for message in messages for call in message.tool_calls]
    assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [
        (0, "sql", '{"q": "x"}'),
        (1, "sql", '{"q": "x"}'),
    ]
    assert len({call.id for call in calls}) == 2
    content = "".join(message.content or "" for message in messages)
    assert content == "I look.\nI look.\n" + tail


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_vllm_s_own_streaming_uses_the_file_named_by_the_flags(choice: str) -> None:
    pytest.importorskip("vllm")
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.parser_manager import ParserManager
    from vllm.tool_parsers.abstract_tool_parser import ToolParserManager

    ToolParserManager.import_tool_parser(TOOL_FLAGS[-1])
    parser_type = ParserManager.get_parser(tool_parser_name="bare_json", enable_auto_tools=True)
    tool = {"type": "function", "function": {"name": "sql", "parameters": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": "?"}], "tools": [tool], "tool_choice": choice}
    chat: Any = ChatCompletionRequest.model_validate(body)
    assert parser_type is not None
    parser: Any = parser_type(None, chat.tools)
    text = REPLY + "\nand then {"
    messages = [
        parser.parse_delta(letter, [index], chat, [1], finished=index == len(text) - 1)
        for index, letter in enumerate(text)
    ]
    content = "".join(message.content or "" for message in messages if message)
    calls = [call for message in messages if message for call in message.tool_calls]
    if choice == "none":
        assert (content, calls) == (text, [])
    else:
        assert content == "I look.\n\nand then {"
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("sql", '{"q": "x"}')
        ]


def test_importing_the_scanner_imports_nothing_of_vllm() -> None:
    import subprocess

    code = "import sys, adaseek_vllm.bare_json; print([m for m in sys.modules if m[:4] == 'vllm'])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.engine
def test_a_real_engine_gives_clients_tool_calls_whole_and_in_a_stream() -> None:
    openai = pytest.importorskip("openai")
    from adaseek.testing.local_engine import local_engine

    parameters = {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
    }
    function = {"name": "calculator", "description": "Evaluate.", "parameters": parameters}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "What is 17 * 23? Use the calculator."}],
        "tools": [{"type": "function", "function": function}],
        "temperature": 0.0,
        "max_tokens": 60,
    }
    model = "Qwen2.5-Coder-0.5B-Instruct"
    with local_engine(model, flags=TOOL_FLAGS, max_model_len=1024) as engine:
        client = openai.OpenAI(base_url=engine.base_url, api_key="none")
        choice = client.chat.completions.create(model=model, **body).choices[0]
        chunks = list(client.chat.completions.create(model=model, stream=True, **body))
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "calculator")
    assert "17" in json.loads(call.function.arguments)["expression"]
    (streamed,) = [
        call for chunk in chunks for one in chunk.choices for call in one.delta.tool_calls or ()
    ]
    whole = call.function
    assert (streamed.function.name, streamed.function.arguments) == (whole.name, whole.arguments)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
