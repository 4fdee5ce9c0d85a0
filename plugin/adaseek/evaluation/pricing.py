"""What a call costs, from the user's own prices. An unknown price stays unknown, never zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any  # Any: prices come from the user's configuration

from adaseek.errors import ConfigurationError, choices, require
from adaseek.workflow import ModelRef, Usage

__all__ = ["Price", "PriceTable"]

_TOKENS_PER_PRICE = 1_000_000
_TOKEN_KEYS = ("input", "output", "cached_input")
_SECOND_KEYS = ("per_second", "concurrency")


@dataclass(frozen=True)
class Price:
    """The price of one model, by token or, for a model of one's own, by second of the engine.

    Attributes:
        input, output, cached_input: USD for one million tokens. Cached input tokens cost as much
            as others unless `cached_input` says otherwise.
        per_second: USD for one second of the engine; excludes the prices by token.
        concurrency: how many requests share the engine's second.
    """

    input: float = 0.0
    output: float = 0.0
    cached_input: float | None = None
    per_second: float | None = None
    concurrency: float = 1.0

    def __call__(self, usage: Usage, duration_s: float) -> float:
        """Returns the price of `usage` in USD; `duration_s` is the time without any cache."""
        if self.per_second is not None:
            return self.per_second * duration_s / self.concurrency
        cached_price = self.input if self.cached_input is None else self.cached_input
        cached = min(usage.cached_tokens, usage.input_tokens)
        fresh = usage.input_tokens - cached
        total = fresh * self.input + cached * cached_price + usage.output_tokens * self.output
        return total / _TOKENS_PER_PRICE

    @classmethod
    def parse(cls, name: str, body: Mapping[str, Any]) -> Price:
        """Returns the price of model `name` from the user's mapping.

        Raises:
            ConfigurationError: for a key that is unknown or missing, or a value out of range.
        """
        known = (*_TOKEN_KEYS, *_SECOND_KEYS)
        setting = f"prices[{name!r}]"
        require(
            isinstance(body, Mapping), setting, body, f"must be a mapping with {choices(known)}"
        )
        for key, value in body.items():
            require(key in known, setting, dict(body), f"may only have {choices(known)}")
            _check_amount(f"{setting}[{key!r}]", value, positive=key == "concurrency")
        needed = ("per_second",) if "per_second" in body else ("input", "output")
        other = _TOKEN_KEYS if "per_second" in body else _SECOND_KEYS
        missing = [key for key in needed if key not in body]
        mixed = [key for key in other if key in body]
        rule = "must have 'input' and 'output' (USD per million tokens), or 'per_second' (USD)"
        require(not missing and not mixed, setting, dict(body), rule)
        return cls(**{key: float(value) for key, value in body.items()})


@dataclass(frozen=True)
class PriceTable:
    """Prices by model key (`ModelRef.key`) or model id; the key wins."""

    prices: Mapping[str, Price] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: Mapping[str, Mapping[str, Any]]) -> PriceTable:
        """Returns the table from the user's mapping of model to `{"input": 0.15, "output": 0.6}`.

        Raises:
            ConfigurationError: naming the model and the key that is wrong.
        """
        require(isinstance(body, Mapping), "prices", body, "must map models to their prices")
        return cls({name: Price.parse(name, price) for name, price in body.items()})

    def price(self, model: ModelRef, usage: Usage, duration_s: float) -> float | None:
        """Returns the price of one call in USD, or None if the model has none."""
        price = self.prices.get(model.key) or self.prices.get(model.id)
        return None if price is None else price(usage, duration_s)


def _check_amount(name: str, value: object, *, positive: bool) -> None:
    rule = "must be a number above 0" if positive else "must be a number >= 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"`{name}` is {value!r}, but {rule}.")
    # Written so that NaN fails, and infinity too.
    fits = 0 < value < float("inf") if positive else 0 <= value < float("inf")
    require(fits, name, value, rule)
