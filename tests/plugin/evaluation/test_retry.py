from __future__ import annotations

import pytest
from adaseek.errors import ConfigurationError
from adaseek.evaluation.retry import Retry, retry_after_s


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rate limit reached. Please try again in 1.5s.", 1.5),
        ("try again in 20ms", 0.02),
        ("Please try again in 1m30s. Visit ...", 90.0),
        ("try again in 2 minutes", 120.0),
        ("retry-after: 12", 12.0),
        ("{'Retry-After': '7', 'x': 3}", 7.0),
        ("Retry after 3 seconds", 3.0),
        ("Retrying in 4 s", None),
        ("retry in 4 s", 4.0),
        ("HTTP 500", None),
        ("retry later", None),
    ],
)
def test_hint_is_read_from_the_error_text(text: str, expected: float | None) -> None:
    assert retry_after_s(text) == (None if expected is None else pytest.approx(expected))


def test_pauses_double_up_to_the_cap_less_up_to_half() -> None:
    retry = Retry(base_s=1.0, cap_s=5.0)
    for attempt, full_s in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (9, 5.0)):
        pauses = [retry.pause_s(attempt, seed=str(i)) for i in range(50)]
        assert all(full_s / 2 <= pause <= full_s for pause in pauses)
        assert max(pauses) - min(pauses) > full_s / 4


def test_pause_depends_on_nothing_but_its_arguments() -> None:
    assert Retry().pause_s(2, seed="a") == Retry().pause_s(2, seed="a")
    assert Retry().pause_s(2, seed="a") != Retry().pause_s(2, seed="b")


def test_hint_is_kept_to_within_reason() -> None:
    retry = Retry(base_s=1.0, max_hint_s=100.0)
    assert 30.0 <= retry.pause_s(1, seed="a", hint_s=30.0) <= 31.0
    assert 100.0 <= retry.pause_s(1, seed="a", hint_s=9999.0) <= 101.0


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="`tries` is 0"):
        Retry(tries=0)
    with pytest.raises(ConfigurationError, match="`base_s` is -1"):
        Retry(base_s=-1)
