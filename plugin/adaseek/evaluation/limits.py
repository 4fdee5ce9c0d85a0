"""The caps of a run and the ledger that keeps them: reserve first, spend then."""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np

from adaseek.errors import BudgetExhaustedError, ConfigurationError, choices, require
from adaseek.workflow import ModelRef, Usage

__all__ = ["Ledger", "Limits"]

PriceOf = Callable[[ModelRef, Usage, float], float | None]


@dataclass(frozen=True)
class Limits:
    """What a run may use at most; None: no limit.

    Attributes:
        max_runs: workflow runs, replayed ones included, so that a resumed run goes the same way.
            Never exceeded.
        max_cost_usd: money really paid over the whole run, interruptions included.
        max_tokens: tokens really paid, input and output.
        max_seconds: seconds of this process; a resumed run has all of them again.
    """

    max_runs: int | None = None
    max_cost_usd: float | None = None
    max_tokens: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be above 0, or None")

    def check_prices(self, models: Iterable[ModelRef], price: PriceOf | None) -> None:
        """Raises unless money can be counted: a cap on it needs the price of every model.

        Raises:
            ConfigurationError: if `max_cost_usd` is set and a model's price is unknown.
        """
        if self.max_cost_usd is None:
            return
        probe = Usage(input_tokens=1, output_tokens=1, requests=1)
        unknown = [m.key for m in models if price is None or price(m, probe, 1.0) is None]
        if unknown:
            raise ConfigurationError(
                f"`max_cost_usd` is {self.max_cost_usd}, but no price is known for "
                f"{choices(unknown)}; an unknown price is never counted as 0. Give it in `prices` "
                'as {"input": USD per 1M tokens, "output": USD per 1M tokens} or '
                '{"per_second": USD}, or drop `max_cost_usd`.'
            )


class Ledger:
    """What a run has used so far, and whether it may use more. Thread-safe.

    Runs are counted exactly. Money and tokens are known only afterwards: a batch is admitted if
    the expected total of its runs fits, and no run starts once a cap is reached, so the overshoot
    is at most what was in flight. Admission depends on finished batches only, not on threads.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        paid: Usage | None = None,
        estimate_usd: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts to count time.

        Args:
            limits: the caps.
            paid: what the journal says was paid before (`Journal.paid()`).
            estimate_usd: expected money per run, used until the first run has ended.
            clock: seconds, for tests.

        Raises:
            ConfigurationError: if money is capped and `paid` holds a call of unknown price.
        """
        self._limits = limits or Limits()
        self._clock = clock
        self._started_s = clock()
        self._lock = threading.Lock()
        self._paid = paid or Usage()
        self._num_runs = 0
        self._num_finished = 0
        self._num_replayed = 0
        self._costs = array("d", [] if estimate_usd is None else [estimate_usd])
        self._tokens = array("d")
        self._has_guess = estimate_usd is not None
        self._check_known()

    @property
    def num_runs(self) -> int:
        """Workflow runs reserved so far, replayed ones included."""
        return self._num_runs

    @property
    def num_finished(self) -> int:
        """How many of those have ended, replayed ones included."""
        return self._num_finished

    @property
    def num_replayed(self) -> int:
        """How many of those came from the journal."""
        return self._num_replayed

    @property
    def paid(self) -> Usage:
        """What was really paid, earlier processes of this run included."""
        return self._paid

    @property
    def seconds(self) -> float:
        """Seconds since this ledger was made."""
        return self._clock() - self._started_s

    @property
    def needs_sample(self) -> bool:
        """Whether money or tokens are capped and nothing is known yet about what a run takes.

        Then one run should be done alone first: what it took tells how many more fit.
        """
        cost = self._limits.max_cost_usd is not None and not self._costs
        return cost or (self._limits.max_tokens is not None and not self._tokens)

    def reserve(self, num_runs: int) -> int:
        """Counts `num_runs` more workflow runs, all or none; returns how many there were before.

        Raises:
            BudgetExhaustedError: if `max_runs` does not allow them.
        """
        cap = self._limits.max_runs
        with self._lock:
            if cap is not None and self._num_runs + num_runs > cap:
                raise BudgetExhaustedError(
                    f"`max_runs` is {cap}: {self._num_runs} runs are used, so {num_runs} more do "
                    "not fit. Start the run again with a larger budget to go on from here."
                )
            self._num_runs += num_runs
            return self._num_runs - num_runs

    def release(self, num_runs: int) -> None:
        """Gives back reserved runs that were not done."""
        with self._lock:
            self._num_runs -= num_runs

    def finish(self, num_runs: int = 1) -> None:
        """Counts reserved runs that have ended, replayed ones too."""
        with self._lock:
            self._num_finished += num_runs

    def afford(self, num_runs: int) -> None:
        """Raises unless the money, tokens and time for `num_runs` new runs are left.

        Raises:
            BudgetExhaustedError: naming the limit, what is used and what the runs would take.
        """
        if num_runs == 0:
            return
        self.check()
        with self._lock:
            if self._limits.max_cost_usd is not None:
                expected = _expected_total(self._costs, num_runs)
                _check_fits("max_cost_usd", self._limits.max_cost_usd, self._cost(), expected)
            if self._limits.max_tokens is not None:
                expected = _expected_total(self._tokens, num_runs)
                _check_fits("max_tokens", self._limits.max_tokens, _tokens(self._paid), expected)

    def check(self) -> None:
        """Raises if a cap on money, tokens or time is reached: no new run may start.

        Raises:
            BudgetExhaustedError: naming the limit and what is used.
        """
        limits = self._limits
        with self._lock:
            used = (
                ("max_cost_usd", limits.max_cost_usd, self._cost()),
                ("max_tokens", limits.max_tokens, _tokens(self._paid)),
                ("max_seconds", limits.max_seconds, self.seconds),
            )
        for name, cap, amount in used:
            if cap is not None and amount >= cap:
                raise BudgetExhaustedError(f"`{name}` is {cap}, and {amount:.6g} are used.")

    def spend(self, paid: Usage) -> None:
        """Adds what a run, or a proposal of the tuner, really cost.

        Raises:
            ConfigurationError: if money is capped and the cost is unknown.
        """
        with self._lock:
            self._paid += paid
        self._check_known()

    def observe(self, usage: Usage, *, replayed: bool = False) -> None:
        """Learns from one finished run what a run takes.

        Give what it takes uncached (`Evaluation.usage`), and give a batch's runs in task order:
        what was really paid depends on which thread asked first, and admission must not.
        """
        with self._lock:
            if self._has_guess:
                self._costs.pop()
                self._has_guess = False
            self._costs.append(usage.cost_usd or 0.0)
            self._tokens.append(_tokens(usage))
            self._num_replayed += replayed

    def _cost(self) -> float:
        return self._paid.cost_usd or 0.0

    def _check_known(self) -> None:
        if self._limits.max_cost_usd is not None and self._paid.cost_usd is None:
            raise ConfigurationError(
                f"`max_cost_usd` is {self._limits.max_cost_usd}, but a call of unknown price was "
                "made; an unknown price is never counted as 0. Give every model that the program "
                "calls a price in `prices`, or drop `max_cost_usd`."
            )


def _expected_total(values: array[float], num_runs: int) -> float:
    # A high quantile of the total of `num_runs` independent runs: their mean, plus the distance
    # to the 95th percentile, which grows with the square root. For one run this is that
    # percentile itself. `num_runs` times the percentile would refuse batches that do fit.
    if not values:
        return 0.0
    known = np.frombuffer(values)
    mean, high = float(known.mean()), float(np.quantile(known, 0.95, method="higher"))
    return num_runs * mean + max(0.0, high - mean) * math.sqrt(num_runs)


def _check_fits(name: str, cap: float, used: float, expected: float) -> None:
    if used + expected > cap:
        raise BudgetExhaustedError(
            f"`{name}` is {cap}: {used:.6g} are used, and the next runs may take {expected:.6g}. "
            "Start the run again with a larger limit to go on from here."
        )


def _tokens(usage: Usage) -> int:
    return usage.input_tokens + usage.output_tokens
