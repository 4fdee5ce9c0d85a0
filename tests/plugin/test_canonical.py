"""One JSON form per value: fingerprints do not depend on order, process or spelling of floats."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from adaseek._canonical import canonical_json, fingerprint
from hypothesis import given
from hypothesis import strategies as st

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_reads_back_as_the_value(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=6))
def test_order_of_keys_does_not_change_the_fingerprint(value: dict[str, object]) -> None:
    reverse = dict(reversed(list(value.items())))
    assert fingerprint(value) == fingerprint(reverse)


@given(JSON, JSON)
def test_values_with_different_json_have_different_fingerprints(one: object, two: object) -> None:
    same = canonical_json(one) == canonical_json(two)
    assert (fingerprint(one) == fingerprint(two)) == same


@pytest.mark.parametrize("length", [8, 16, 32, 64])
def test_length_of_a_fingerprint(length: int) -> None:
    digits = fingerprint({"a": 1}, length=length)
    assert len(digits) == length
    assert fingerprint({"a": 1}, length=64).startswith(digits)


def test_fingerprint_is_the_same_in_another_process_with_another_hash_seed() -> None:
    value = {"é": [1, 2.5, None], "b": {"y": "z", "x": True}}
    code = (
        "from adaseek._canonical import fingerprint;"
        "print(fingerprint({'b': {'x': True, 'y': 'z'}, '\\u00e9': [1, 2.5, None]}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == fingerprint(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_values_that_json_cannot_hold_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes"])
def test_types_that_json_cannot_hold_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)
