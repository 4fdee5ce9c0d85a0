"""Marked values: texts and numbers that tell where they came from when they come up again. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any  # Any: schemas and values are JSON

__all__ = ["Mark", "Markers", "resolved"]

_MARK = re.compile(r"mark(\d{4})x", re.IGNORECASE)
_FIRST_NUMBER = 70_001
_MAX_DEPTH = 6


@dataclass(frozen=True)
class Mark:
    """What a marked value stands for: a field of a step's output, or of the program's input."""

    source: str
    field: str


@dataclass
class Markers:
    """Hands out marked values and recognises them in texts.

    Args:
        turn: which of the allowed values of a choice to take, so that several runs see several.
    """

    turn: int = 0
    _marks: list[Mark] = field(default_factory=list)

    def text(self, source: str, name: str) -> str:
        """Returns a new text that stands for the field `name` of `source`."""
        self._marks.append(Mark(source, name))
        return f"mark{len(self._marks):04d}x"

    def number(self, source: str, name: str) -> int:
        """Returns a new number that stands for the field `name` of `source`."""
        self._marks.append(Mark(source, name))
        return _FIRST_NUMBER + len(self._marks) - 1

    def found(self, text: str) -> list[Mark]:
        """Returns what the marks in `text` stand for, in order, each once."""
        indices = [int(m) - 1 for m in _MARK.findall(text)]
        indices += [
            int(number) - _FIRST_NUMBER
            for number in re.findall(r"\d{5}", text)
            if 0 <= int(number) - _FIRST_NUMBER < len(self._marks)
        ]
        marks = (self._marks[i] for i in indices if 0 <= i < len(self._marks))
        return list(dict.fromkeys(marks))

    def template(self, text: str) -> str:
        """Returns `text` with `{field}` for each mark; braces of its own are then doubled."""
        if not _MARK.search(text):
            return text
        doubled = text.replace("{", "{{").replace("}", "}}")

        def name(found: re.Match[str]) -> str:
            index = int(found[1]) - 1
            known = 0 <= index < len(self._marks)
            return "{" + (_identifier(self._marks[index].field) if known else "value") + "}"

        return _MARK.sub(name, doubled)

    def of_schema(
        self, schema: Mapping[str, Any], source: str, name: str, *, depth: int = 0
    ) -> Any:
        """Returns a value that satisfies `schema`, marked wherever it can be."""
        if depth > _MAX_DEPTH:
            return None
        if "const" in schema:
            return schema["const"]
        choices: Sequence[Any] = schema.get("enum") or ()
        if choices:
            return choices[self.turn % len(choices)]
        if "default" in schema and schema["default"] is not None and "type" not in schema:
            return schema["default"]
        for union in ("anyOf", "oneOf", "allOf"):
            options = [s for s in schema.get(union) or () if s.get("type") != "null"]
            if options:
                return self.of_schema(options[0], source, name, depth=depth + 1)
        return self._of_type(schema, source, name, depth)

    def _of_type(self, schema: Mapping[str, Any], source: str, name: str, depth: int) -> Any:
        kind = schema.get("type")
        kind = next((k for k in kind if k != "null"), None) if isinstance(kind, list) else kind
        if kind == "object" or "properties" in schema:
            return {
                key: self.of_schema(value, source, key, depth=depth + 1)
                for key, value in (schema.get("properties") or {}).items()
            }
        if kind == "array":
            items = schema.get("items")
            item = items if isinstance(items, Mapping) else {}
            return [self.of_schema(item, source, name, depth=depth + 1)]
        if kind == "integer":
            return self._within(schema, self.number(source, name))
        if kind == "number":
            return float(self._within(schema, self.number(source, name)))
        if kind == "boolean":
            return self.turn % 2 == 0
        if kind == "null":
            return None
        return self.text(source, name)

    @staticmethod
    def _within(schema: Mapping[str, Any], number: int) -> int:
        largest = schema.get("maximum", schema.get("exclusiveMaximum"))
        smallest = schema.get("minimum", 0)
        fits = largest is None or number < largest
        return number if fits else int(smallest)


def resolved(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON schema with its references replaced by what they refer to."""
    definitions = schema.get("$defs") or schema.get("definitions") or {}
    found: dict[str, Any] = _resolve(schema, definitions, 0)
    return found


def _resolve(value: Any, definitions: Mapping[str, Any], depth: int) -> Any:
    if depth > 2 * _MAX_DEPTH:
        return {}
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        if isinstance(reference, str):
            target = definitions.get(reference.rpartition("/")[2], {})
            return _resolve(target, definitions, depth + 1)
        return {
            key: _resolve(item, definitions, depth + 1)
            for key, item in value.items()
            if key not in ("$defs", "definitions")
        }
    if isinstance(value, list):
        return [_resolve(item, definitions, depth + 1) for item in value]
    return value


def _identifier(name: str) -> str:
    cleaned = re.sub(r"\W", "_", name)
    return cleaned if cleaned and not cleaned[0].isdigit() else f"v_{cleaned}"
