"""Markup that cannot be injected into."""

from __future__ import annotations

import html
import json
import math
import re

from adaseek.report._html import Html, details, join, json_block, table, tag
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.text())
def test_text_never_becomes_markup(text: str) -> None:
    written = tag("p", text, title=text)
    assert len(re.findall(r"[<>]", written)) == 4
    assert written.count('"') == 2


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",))))
def test_text_comes_back_unchanged(text: str) -> None:
    written = tag("p", text)
    assert html.unescape(written.removeprefix("<p>").removesuffix("</p>")) == text


@given(JSON)
def test_a_data_block_cannot_be_ended_from_within(value: object) -> None:
    block = json_block("data", value)
    inner = block.removeprefix('<script type="application/json" id="data">')
    inner = inner.removesuffix("</script>")
    assert not set(inner) & set("<>&")
    assert json.loads(inner) == value or not math.isfinite(sum(_numbers(value)))


def test_markup_is_taken_as_it_is() -> None:
    assert tag("p", tag("b", "x"), "<b>") == "<p><b>x</b>&lt;b&gt;</p>"


def test_markup_put_into_a_string_is_text_again() -> None:
    assert join(f"{tag('b', 'x')}!") == "&lt;b&gt;x&lt;/b&gt;!"


def test_attribute_names_and_absent_attributes() -> None:
    written = tag("a", class_="x", aria_label="y", title=None)
    assert written == '<a class="x" aria-label="y"></a>'


def test_numbers_that_json_lacks_become_null() -> None:
    assert "[null,null,1.5]" in json_block("data", [math.nan, math.inf, 1.5])


def test_a_table_has_headers_for_columns_and_rows() -> None:
    written = table("Costs", ["Step", "USD"], [["a<b", "1"]], numeric=frozenset({1}))
    assert "<caption>Costs</caption>" in written
    assert '<th scope="col">Step</th><th scope="col" class="number">USD</th>' in written
    assert '<th scope="row">a&lt;b</th><td class="number">1</td>' in written


def test_a_block_can_start_unfolded() -> None:
    assert details("more", "text", is_open=True).startswith('<details open=""><summary>more')
    assert isinstance(details("more", "text"), Html)


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return _numbers(list(value.values()))
    if isinstance(value, list):
        return [n for item in value for n in _numbers(item)]
    return [value] if isinstance(value, float) else []
