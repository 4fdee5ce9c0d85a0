"""Every error that AdaSeek raises on purpose.

A message says which setting is wrong, its value, the rule it breaks and the cure.
"""

from __future__ import annotations

__all__ = [
    "AdaseekError",
    "BudgetExhaustedError",
    "ConfigurationError",
    "EndpointError",
    "ExampleError",
    "JournalError",
    "MetricError",
    "PluginError",
    "RecipeMismatchError",
    "RunInterrupted",
    "TooManyErrorsError",
    "TranslationError",
    "choices",
    "require",
]

from collections.abc import Iterable


class AdaseekError(Exception):
    """The root of AdaSeek's errors; the command line prints it as one line."""


class ConfigurationError(AdaseekError, ValueError):
    """A setting has a value that it must not have."""


class ExampleError(AdaseekError, ValueError):
    """An example cannot be used, e.g. because it cannot be written as JSON."""


class MetricError(AdaseekError, TypeError):
    """The user's metric raised, or returned something that is not a score."""


class TranslationError(AdaseekError, TypeError):
    """A program cannot be translated into a workflow."""


class RecipeMismatchError(AdaseekError, ValueError):
    """A recipe was made for another workflow; the message holds the difference."""


class PluginError(AdaseekError, RuntimeError):
    """A plugin is missing or broken."""


class JournalError(AdaseekError, RuntimeError):
    """The journal belongs to another run, or cannot be read or written."""


class EndpointError(AdaseekError, RuntimeError):
    """A model endpoint does not answer, or does not serve the model."""


class BudgetExhaustedError(AdaseekError, RuntimeError):
    """A limit (workflow runs, money, tokens or time) does not allow another run."""


class RunInterrupted(AdaseekError):  # noqa: N818 - an interruption is no error of anybody's
    """The user or the system asked the run to end; what was finished is journalled."""


class TooManyErrorsError(AdaseekError, RuntimeError):
    """More workflow runs failed than `max_errors` allows."""


def require(condition: bool, name: str, value: object, rule: str, *, cure: str = "") -> None:
    """Raises `ConfigurationError` with name, value, rule and cure unless `condition` holds."""
    if not condition:
        raise ConfigurationError(
            f"`{name}` is {value!r}, but {rule}." + (f" {cure}" if cure else "")
        )


def choices(values: Iterable[str]) -> str:
    """Returns `values` as a readable list of quoted choices, in the given order."""
    return ", ".join(f"'{value}'" for value in values)
