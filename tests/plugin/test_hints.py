"""Hints: what is written is read again, nothing oversized is sent, a request's own fields win."""

from __future__ import annotations

import json
import math

import pytest
from adaseek.errors import ConfigurationError
from adaseek.hints import MAX_NAME_CHARACTERS, MAX_SECONDS, Hint, is_name, may_be_told
from hypothesis import given
from hypothesis import strategies as st

_names = st.text(st.characters(categories=["L", "N"]), max_size=MAX_NAME_CHARACTERS)
_seconds = st.none() | st.floats(0, MAX_SECONDS)
_hints = st.builds(
    Hint, session=_names, tool=_names, expected_s=_seconds, keep_s=_seconds, final=st.booleans()
)


@given(_hints)
def test_a_hint_survives_the_wire(hint: Hint) -> None:
    assert Hint.from_body(json.loads(json.dumps(hint.to_body()))) == hint


@given(_hints)
def test_vllm_takes_every_argument(hint: Hint) -> None:
    arguments = hint.to_body().get("vllm_xargs", {})
    assert all(type(value) in (str, int, float) for value in arguments.values())


def test_the_fields_on_the_wire() -> None:
    hint = Hint(session="s1", tool="search", expected_s=2.5, keep_s=60, final=True)
    assert hint.to_body() == {
        "session_id": "s1",
        "vllm_xargs": {
            "kvret_tool": "search",
            "kvret_expect_s": 2.5,
            "kvret_ttl_s": 60,
            "kvret_final": 1,
        },
    }


def test_an_empty_hint_adds_nothing() -> None:
    assert Hint().is_empty
    assert Hint().to_body() == {}
    assert Hint().added_to({"model": "m"}) == {"model": "m"}
    assert not Hint(final=True).is_empty


def test_only_a_session_needs_no_arguments() -> None:
    assert Hint(session="s").to_body() == {"session_id": "s"}


def test_what_the_request_says_itself_wins() -> None:
    body = {"session_id": "own", "vllm_xargs": {"kvret_tool": "own", "other": 1}, "top_k": 3}
    merged = Hint(session="s", tool="t", final=True).added_to(body)
    assert merged == {
        "session_id": "own",
        "vllm_xargs": {"kvret_tool": "own", "kvret_final": 1, "other": 1},
        "top_k": 3,
    }
    assert body["vllm_xargs"] == {"kvret_tool": "own", "other": 1}


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("session", "x" * (MAX_NAME_CHARACTERS + 1), "at most 128 characters"),
        ("tool", "x" * (MAX_NAME_CHARACTERS + 1), "at most 128 characters"),
        ("session", "a\nb", "printable"),
        ("session", 7, "must be a text"),
        ("expected_s", -0.1, "from 0 to 86400"),
        ("expected_s", MAX_SECONDS + 1, "from 0 to 86400"),
        ("keep_s", math.inf, "from 0 to 86400"),
        ("keep_s", math.nan, "from 0 to 86400"),
        ("keep_s", True, "number of seconds"),
        ("expected_s", "2", "number of seconds"),
        ("final", 1, "True or False"),
    ],
)
def test_a_value_that_cannot_be_sent_is_named(field: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule) as raised:
        Hint(**{field: value})  # type: ignore[arg-type]
    assert f"`{field}`" in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        {"vllm_xargs": [1]},
        {"vllm_xargs": {"kvret_final": 2}},
        {"vllm_xargs": {"kvret_tool": 3}},
        {"session_id": ["s"]},
    ],
)
def test_a_foreign_body_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Hint.from_body(body)


def test_a_body_without_hints_gives_an_empty_one() -> None:
    assert Hint.from_body({"model": "m", "vllm_xargs": {"other": 1}}).is_empty


def test_the_server_side_reads_the_same_keys() -> None:
    hints = pytest.importorskip("adaseek_vllm.retention.hints")
    hint = Hint(session="s1", tool="search", expected_s=2.5, keep_s=60.0, final=True)
    body = hint.to_body()
    read = hints.Hints.read({"session_id": body["session_id"], **body["vllm_xargs"]})
    assert (read.session, read.tool, read.expect_s, read.ttl_s, read.is_final) == (
        hint.session,
        hint.tool,
        hint.expected_s,
        hint.keep_s,
        hint.final,
    )


@pytest.mark.parametrize(
    ("url", "is_told"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("https://models.example.org/v1", True),
        ("https://api.openai.com/v1", False),
        ("https://x.openai.azure.com", False),
        ("https://notopenai.com/v1", True),
        ("", False),
        (None, False),
    ],
)
def test_only_servers_given_by_url_that_take_more_fields_are_told(
    url: object, is_told: bool
) -> None:
    assert may_be_told(url) is is_told


def test_a_name_fits_into_a_hint_or_is_no_name() -> None:
    assert is_name("s1")
    assert not is_name("")
    assert not is_name("x" * (MAX_NAME_CHARACTERS + 1))
    assert not is_name("a\nb")
