"""Reads the value of a feature's flag; knows no feature and nothing of vLLM."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

__all__ = ["FeatureSettingsError", "check_keys", "is_off", "read_mapping"]

_ON = frozenset({"", "auto", "on", "true"})
_OFF = frozenset({"off", "false", "none"})


class FeatureSettingsError(ValueError):
    """A feature's flag has a value it must not have, or cannot work with vLLM's other flags."""


def is_off(value: object) -> bool:
    """Returns whether a flag's value asks for nothing: absent, False, or the word `off`."""
    if isinstance(value, str):
        return value.strip().lower() in _OFF
    return value is None or value is False


def read_mapping(flag: str, value: object) -> dict[str, object]:
    """Returns the settings that a flag's value holds; `auto` and True hold none.

    Args:
        flag: the flag, for messages.
        value: True, a word (`auto`), JSON text of an object, or a mapping.

    Raises:
        FeatureSettingsError: it is none of these.
    """
    if value is True:
        return {}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if not isinstance(value, str):
        raise _not_an_object(flag, value)
    if value.strip().lower() in _ON:
        return {}
    try:
        read = json.loads(value)
    except json.JSONDecodeError as error:
        raise _not_an_object(flag, value) from error
    if not isinstance(read, dict):
        raise _not_an_object(flag, value)
    return read


def check_keys(flag: str, settings: Mapping[str, object], *, known: Collection[str]) -> None:
    """Raises `FeatureSettingsError` if `settings` has a key that is not in `known`."""
    if unknown := sorted(set(settings) - set(known)):
        raise FeatureSettingsError(
            f"{flag} has no setting {', '.join(repr(key) for key in unknown)}; "
            f"it has {', '.join(repr(key) for key in sorted(known))}."
        )


def _not_an_object(flag: str, value: object) -> FeatureSettingsError:
    return FeatureSettingsError(
        f'{flag} is {value!r}, but must be `auto` or a JSON object, e.g. \'{{"policy": "auto"}}\'.'
    )
