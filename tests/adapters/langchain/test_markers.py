"""Marked values satisfy schemas, are recognised wherever they come up, and become templates."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from adaseek_langchain._markers import Mark, Markers, resolved
from hypothesis import given
from hypothesis import strategies as st


def test_mark_is_found_again_in_any_case_and_inside_json() -> None:
    marks = Markers()
    first, second = marks.text("a", "x"), marks.text("b", "y")
    text = json.dumps({"said": f"{second.upper()}, then {first}; {first}"})
    assert marks.found(text) == [Mark("b", "y"), Mark("a", "x")]


def test_numbers_are_marks_too() -> None:
    marks = Markers()
    number = marks.number("a", "count")
    assert marks.found(f"{number} of them") == [Mark("a", "count")]
    assert marks.found("99999 and 12345") == []


def test_template_names_what_was_filled_in_and_keeps_other_braces() -> None:
    marks = Markers()
    text = f'Answer {marks.text("INPUT", "the question")} as {{"a": 1}}'
    assert marks.template(text) == 'Answer {the_question} as {{"a": 1}}'
    assert marks.template('Plain {"a": 1}') == 'Plain {"a": 1}'


@given(st.lists(st.text(max_size=20), max_size=4))
def test_template_filled_in_again_is_the_text(parts: list[str]) -> None:
    marks = Markers()
    values, text = {}, ""
    for index, part in enumerate(parts):
        name = f"n{index}"
        values[name] = marks.text("INPUT", name)
        text += part + values[name]
    template = marks.template(text)
    assert (template.format(**values) if values else template) == text


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"enum": ["a", "b"]}, "a"),
        ({"const": 3}, 3),
        ({"type": "boolean"}, True),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, True),
        ({"type": ["null", "boolean"]}, True),
        ({"type": "integer", "maximum": 5, "minimum": 1}, 1),
        ({"type": "null"}, None),
        ({"type": "object", "properties": {"a": {"type": "boolean"}}}, {"a": True}),
    ],
)
def test_value_satisfies_its_schema(schema: Any, expected: Any) -> None:
    assert Markers().of_schema(schema, "s", "f") == expected


def test_choices_and_flags_change_with_the_turn() -> None:
    told = [Markers(turn).of_schema({"enum": ["a", "b"]}, "s", "f") for turn in (0, 1, 2)]
    assert told == ["a", "b", "a"]
    assert Markers(1).of_schema({"type": "boolean"}, "s", "f") is False


def test_references_are_resolved_and_recursion_ends() -> None:
    node: dict[str, Any] = {
        "$ref": "#/$defs/Node",
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                },
            }
        },
    }
    marks = Markers()
    value = marks.of_schema(resolved(node), "s", "f")
    assert marks.found(value["name"]) == [Mark("s", "name")]
    assert "name" in value["next"]
