from __future__ import annotations

import threading

import pytest
from adaseek.errors import BudgetExhaustedError, ConfigurationError
from adaseek.evaluation.limits import Ledger, Limits
from adaseek.evaluation.pricing import PriceTable
from adaseek.workflow import ModelRef, Usage
from hypothesis import given
from hypothesis import strategies as st


def cost(usd: float | None, tokens: int = 0) -> Usage:
    return Usage(input_tokens=tokens, requests=1, cost_usd=usd)


def test_runs_are_reserved_all_or_none() -> None:
    ledger = Ledger(Limits(max_runs=5))
    assert ledger.reserve(3) == 0
    with pytest.raises(BudgetExhaustedError, match="`max_runs` is 5: 3 runs are used, so 3 more"):
        ledger.reserve(3)
    assert ledger.num_runs == 3
    assert ledger.reserve(2) == 3
    ledger.release(1)
    assert ledger.reserve(1) == 4
    assert ledger.num_runs == 5


@given(st.integers(1, 40), st.lists(st.integers(1, 5), min_size=1, max_size=10))
def test_threads_together_never_reserve_more_than_the_cap(cap: int, asks: list[int]) -> None:
    ledger = Ledger(Limits(max_runs=cap))
    got: list[int] = []

    def ask(number: int) -> None:
        try:
            ledger.reserve(number)
        except BudgetExhaustedError:
            return
        got.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == ledger.num_runs <= cap


def test_without_limits_everything_fits() -> None:
    ledger = Ledger()
    ledger.reserve(10**9)
    ledger.spend(cost(None, 10**9))
    ledger.afford(10**9)
    assert not ledger.needs_sample


def test_first_run_is_a_sample_when_money_or_tokens_are_capped() -> None:
    assert Ledger(Limits(max_cost_usd=1.0)).needs_sample
    assert Ledger(Limits(max_tokens=10)).needs_sample
    assert not Ledger(Limits(max_runs=10, max_seconds=1.0)).needs_sample
    assert not Ledger(Limits(max_cost_usd=1.0), estimate_usd=0.1).needs_sample
    ledger = Ledger(Limits(max_cost_usd=1.0))
    ledger.observe(cost(0.1))
    assert not ledger.needs_sample


def test_guess_counts_until_the_first_run_has_ended() -> None:
    ledger = Ledger(Limits(max_cost_usd=1.0), estimate_usd=0.3)
    ledger.afford(3)
    with pytest.raises(BudgetExhaustedError, match=r"the next runs may take 1\.2"):
        ledger.afford(4)
    ledger.observe(cost(0.1))
    ledger.afford(10)
    with pytest.raises(BudgetExhaustedError):
        ledger.afford(11)


def test_batch_is_admitted_by_the_high_end_of_its_total() -> None:
    ledger = Ledger(Limits(max_cost_usd=10.0))
    for usd in [1.0] * 9 + [2.0]:
        ledger.observe(cost(usd))
    ledger.spend(cost(6.3))
    # Mean 1.1, 95th percentile 2: one run 2.0, two 2.2 + 0.9 * 1.41 = 3.47, three 4.86.
    ledger.afford(1)
    ledger.afford(2)
    with pytest.raises(BudgetExhaustedError, match=r"6\.3 are used, and the next runs may take"):
        ledger.afford(3)


def test_no_run_starts_once_a_cap_is_reached() -> None:
    ledger = Ledger(Limits(max_cost_usd=1.0, max_tokens=100))
    ledger.check()
    ledger.spend(cost(0.5, 100))
    with pytest.raises(BudgetExhaustedError, match="`max_tokens` is 100, and 100 are used"):
        ledger.check()
    ledger = Ledger(Limits(max_cost_usd=1.0))
    ledger.spend(cost(1.0))
    with pytest.raises(BudgetExhaustedError, match="`max_cost_usd`"):
        ledger.afford(1)
    ledger.afford(0)


def test_time_counts_from_when_the_ledger_was_made() -> None:
    now = [50.0]
    ledger = Ledger(Limits(max_seconds=10.0), clock=lambda: now[0])
    now[0] = 59.9
    ledger.check()
    assert ledger.seconds == pytest.approx(9.9)
    now[0] = 60.0
    with pytest.raises(BudgetExhaustedError, match="`max_seconds` is 10"):
        ledger.afford(1)


def test_what_was_paid_before_counts() -> None:
    ledger = Ledger(Limits(max_cost_usd=1.0), paid=cost(0.9))
    ledger.observe(cost(0.2))
    with pytest.raises(BudgetExhaustedError, match=r"0\.9 are used"):
        ledger.afford(1)
    assert ledger.paid == cost(0.9)


def test_unknown_cost_is_refused_where_money_is_capped() -> None:
    with pytest.raises(ConfigurationError, match="never counted as 0"):
        Ledger(Limits(max_cost_usd=1.0), paid=cost(None))
    ledger = Ledger(Limits(max_cost_usd=1.0))
    with pytest.raises(ConfigurationError, match="unknown price"):
        ledger.spend(cost(None))


def test_cap_on_money_needs_the_price_of_every_model_up_front() -> None:
    table = PriceTable.parse({"priced": {"input": 1, "output": 1}, "own": {"per_second": 0}})
    models = [ModelRef("priced"), ModelRef("own"), ModelRef("new", "http://127.0.0.1/v1")]
    limits = Limits(max_cost_usd=2.0)
    limits.check_prices(models[:2], table.price)
    with pytest.raises(ConfigurationError) as caught:
        limits.check_prices(models, table.price)
    assert "`max_cost_usd` is 2.0" in str(caught.value)
    assert "'new@http://127.0.0.1/v1'" in str(caught.value)
    assert "'priced'" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        limits.check_prices(models[:1], None)
    Limits(max_tokens=1).check_prices(models, None)


@pytest.mark.parametrize("name", ["max_runs", "max_cost_usd", "max_tokens", "max_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_must_be_above_zero(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"`{name}` is {value}"):
        Limits(**{name: value})  # type: ignore[arg-type]
