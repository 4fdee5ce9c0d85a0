from __future__ import annotations

from typing import Any

import pytest
from adaseek.errors import ConfigurationError
from adaseek.evaluation.pricing import PriceTable
from adaseek.workflow import ModelRef, Usage

USAGE = Usage(input_tokens=1_000_000, output_tokens=500_000, cached_tokens=400_000, requests=1)


def test_tokens_are_priced_by_the_million() -> None:
    table = PriceTable.parse({"m": {"input": 2.0, "output": 8}})
    assert table.price(ModelRef("m"), USAGE, 1.0) == pytest.approx(6.0)


def test_cached_input_has_its_own_price() -> None:
    table = PriceTable.parse({"m": {"input": 2.0, "output": 8.0, "cached_input": 0.5}})
    # 0.6 M fresh at 2, 0.4 M cached at 0.5, 0.5 M output at 8
    assert table.price(ModelRef("m"), USAGE, 1.0) == pytest.approx(1.2 + 0.2 + 4.0)


def test_more_cached_than_input_tokens_never_make_a_negative_price() -> None:
    table = PriceTable.parse({"m": {"input": 2.0, "output": 0.0, "cached_input": 1.0}})
    usage = Usage(input_tokens=1_000_000, cached_tokens=5_000_000)
    assert table.price(ModelRef("m"), usage, 1.0) == pytest.approx(1.0)


def test_own_model_is_priced_by_its_share_of_the_engines_second() -> None:
    table = PriceTable.parse({"m": {"per_second": 0.01, "concurrency": 4}})
    assert table.price(ModelRef("m"), USAGE, 8.0) == pytest.approx(0.02)
    alone = PriceTable.parse({"m": {"per_second": 0.01}})
    assert alone.price(ModelRef("m"), USAGE, 8.0) == pytest.approx(0.08)


def test_key_with_endpoint_wins_over_the_id() -> None:
    table = PriceTable.parse(
        {"m": {"input": 1, "output": 1}, "m@http://127.0.0.1/v1": {"input": 0, "output": 0}}
    )
    assert table.price(ModelRef("m", "http://127.0.0.1/v1"), USAGE, 1.0) == 0.0
    assert table.price(ModelRef("m", "http://other/v1"), USAGE, 1.0) == pytest.approx(1.5)


def test_unknown_model_has_no_price() -> None:
    assert PriceTable.parse({}).price(ModelRef("m"), USAGE, 1.0) is None
    other = PriceTable.parse({"n": {"input": 0, "output": 0}})
    assert other.price(ModelRef("m"), USAGE, 1.0) is None


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"input": -1, "output": 1}, "['input']` is -1"),
        ({"input": float("nan"), "output": 1}, "['input']` is nan"),
        ({"input": float("inf"), "output": 1}, "['input']` is inf"),
        ({"input": "1", "output": 1}, "['input']` is '1'"),
        ({"input": True, "output": 1}, "['input']` is True"),
        ({"per_second": 1, "concurrency": 0}, "['concurrency']` is 0"),
        ({"input": 1}, "must have 'input' and 'output'"),
        ({"concurrency": 2}, "must have 'input' and 'output'"),
        ({"per_second": 1, "input": 1}, "or 'per_second'"),
        ({"input": 1, "output": 1, "concurrency": 2}, "or 'per_second'"),
        ({"inptu": 1, "output": 1}, "may only have 'input'"),
        (0.5, "must be a mapping"),
    ],
)
def test_wrong_price_is_refused_naming_model_and_key(body: Any, named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PriceTable.parse({"gpt": body})
    assert "prices['gpt']" in str(caught.value)
    assert named in str(caught.value)


def test_table_must_be_a_mapping() -> None:
    with pytest.raises(ConfigurationError, match="`prices` is 3"):
        PriceTable.parse(3)  # type: ignore[arg-type]
