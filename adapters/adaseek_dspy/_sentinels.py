"""Marked values of any type, and where each of them came from."""

from __future__ import annotations

import enum
import itertools
import threading
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin  # Any: a field may have any type

from pydantic import BaseModel

__all__ = ["Sentinels"]

_FIRST_NUMBER = 70_001
"""Marked numbers start here: rare enough in programs to be told from the program's own."""


class Sentinels:
    """Makes values that can be recognised later in whatever text they were put into.

    Args:
        round_index: which of the choices of a Literal, an enum or a bool to take; several rounds
            make a program take several branches.
    """

    def __init__(self, round_index: int) -> None:
        self._round = round_index
        self._numbers = itertools.count(_FIRST_NUMBER)
        self._origins: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()

    def value(self, annotation: Any, source: str, name: str) -> Any:
        """Returns a value of type `annotation`, remembered as field `name` of step `source`."""
        origin, args = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            return args[self._round % len(args)]
        if annotation is bool:
            return self._round % 2 == 0
        if origin in (Union, types.UnionType):
            kinds = [arg for arg in args if arg is not types.NoneType]
            return self.value(kinds[0], source, name) if kinds else None
        if origin in (list, set, tuple, frozenset) or annotation in (list, set, tuple):
            item = self.value(args[0] if args else str, source, name)
            return (origin or annotation)([item])
        if origin is dict or annotation is dict:
            return {"key": self.value(args[1] if len(args) > 1 else str, source, name)}
        return self._single(annotation, source, name)

    def _single(self, annotation: Any, source: str, name: str) -> Any:
        if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            members = list(annotation)
            return members[self._round % len(members)]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self._model(annotation, source, name)
        number = next(self._numbers)
        if annotation is int:
            return self._remember(number, str(number), source, name)
        if annotation is float:
            return self._remember(number + 0.25, str(number + 0.25), source, name)
        # Letters and digits only: it survives case changes, splitting, quoting and JSON.
        text = f"xqz{number}zqx"
        return self._remember(text, text, source, name)

    def _model(self, annotation: type[BaseModel], source: str, name: str) -> Any:
        fields = {
            key: self.value(info.annotation, source, name)
            for key, info in annotation.model_fields.items()
            if info.is_required()
        }
        return annotation.model_construct(**fields)

    def _remember(self, value: Any, text: str, source: str, name: str) -> Any:
        with self._lock:
            self._origins[text] = (source, name)
        return value

    def origins(self, value: Any) -> Iterable[tuple[str, str]]:
        """Returns step and field of every marked value inside `value`."""
        text = repr(value).lower()
        with self._lock:
            return {origin for mark, origin in self._origins.items() if mark in text}
