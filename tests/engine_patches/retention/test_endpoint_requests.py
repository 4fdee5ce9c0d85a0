"""What the intercept door refuses before it does anything, and what its store forgets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from adaseek_vllm.retention.endpoint_requests import InterceptError, NewIntercept, Release, Resume
from adaseek_vllm.retention.endpoint_store import InterceptStore


def new_body(**body: Any) -> dict[str, Any]:
    return {"prompt": [1, 2, 3], "triggers": {"stop_token_ids": [7]}, **body}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"triggers": None}, "`triggers` is 'None', but must be an object with one of"),
        ({"triggers": {}}, "`triggers`"),
        ({"triggers": {"tool_call": False}}, "can pause somewhere"),
        ({"triggers": {"stop_tokens": [1]}}, "an object of stop_token_ids, stop, tool_call"),
        ({"triggers": {"stop_token_ids": ["a"]}}, "a list of token ids"),
        ({"triggers": {"stop_token_ids": [True]}}, "a list of token ids"),
        ({"triggers": {"stop": ""}}, "1 to 128 characters"),
        ({"triggers": {"stop": ["x" * 129]}}, "1 to 128 characters"),
        ({"triggers": {"stop_token_ids": list(range(65))}}, "no more than 64"),
        ({"triggers": {"tool_call": 1}}, "true or false"),
        ({"messages": []}, "either `messages` or `prompt`"),
        ({"max_tokens": 0}, "a whole number >= 1"),
        ({"max_tokens": True}, "a whole number >= 1"),
        ({"stream": "yes"}, "true or false"),
        ({"n": 2}, "`n` is '2'"),
        ({"logprobs": 1}, "continues one plain text"),
        ({"response_format": {"type": "json_object"}}, "continues one plain text"),
        ({"tool_choice": "required"}, "`auto` or `none`"),
        ({"cache_salt": 3}, "a text"),
    ],
)
def test_bad_request_is_refused_by_name(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InterceptError) as raised:
        NewIntercept.read(new_body(**body))
    assert raised.value.status == 400
    assert message in str(raised.value)


def test_defaults_of_client_libraries_are_taken() -> None:
    body = new_body(
        n=1, logprobs=None, echo=False, max_tokens=None, stream=None, tool_choice="auto"
    )
    assert NewIntercept.read(body).max_tokens is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "either `text` or `token_ids`"),
        ({"text": "a", "token_ids": [1]}, "either `text` or `token_ids`"),
        ({"text": 3}, "a text"),
        ({"token_ids": [-1]}, "a list of token ids"),
        ({"text": "a", "temperature": 1}, "an object of text, token_ids"),
    ],
)
def test_bad_resume_is_refused_by_name(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InterceptError) as raised:
        Resume.read(body)
    assert raised.value.status == 400
    assert message in str(raised.value)


def test_release_names_a_session() -> None:
    assert Release.read({"session_id": "s"}) == Release(session="s", tenant="")
    with pytest.raises(InterceptError, match="`session_id`"):
        Release.read({})


def test_forgotten_intercepts_are_forgotten_at_last() -> None:
    store = InterceptStore(1, 60.0, now=lambda: 0.0)
    for index in range(5000):
        intercept: Any = SimpleNamespace(id=str(index), tenant="", state="paused")
        store.add(intercept)
    with pytest.raises(InterceptError, match="There is no intercept"):
        store.find("0", "")
    with pytest.raises(InterceptError, match="dropped to make room"):
        store.find("4998", "")
