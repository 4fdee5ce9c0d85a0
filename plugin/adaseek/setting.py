"""What a recipe changes at one step: the values that cogs choose and adapters apply."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args  # Any: demos and parameters hold JSON values

from adaseek._canonical import canonical_json
from adaseek.errors import ConfigurationError, choices, require
from adaseek.workflow import ModelRef

__all__ = [
    "Aggregate",
    "Demo",
    "Ensemble",
    "Reasoning",
    "Setting",
    "Subtask",
    "check_shape",
    "member_id",
    "owner_id",
    "shortened",
]

Value = TypeVar("Value")

Reasoning = Literal["off", "chain_of_thought", "plan"]
Aggregate = Literal["majority", "judge", "best_of"]

_REASONINGS = get_args(Reasoning)
# Written once: a search makes settings by the hundred thousand.
_REASONING_RULE = f"must be one of {choices(_REASONINGS)}"
_RESERVED_MEMBERS = ("all", "judge")


@dataclass(frozen=True)
class Demo:
    """One worked example shown to a step: its input and output fields by name, as JSON values.

    `source` is the id of the training example that it was harvested from; a run on that example
    never sees it (`Recipe.for_example`).
    """

    values: Mapping[str, Any]
    source: str = ""


@dataclass(frozen=True)
class Ensemble:
    """A step run `num_members` times, its answers combined.

    Each member is a step of its own, `member_id(step, i)`, which may have its own setting. The
    judge of `judge` is the step `member_id(step, "judge")`. `best_of` takes the answer that the
    user's reward function named `reward` scores highest.
    """

    num_members: int
    aggregate: Aggregate = "majority"
    temperature: float = 0.7
    reward: str = ""

    def __post_init__(self) -> None:
        require(self.num_members >= 1, "num_members", self.num_members, "must be >= 1")
        rule = f"must be one of {choices(get_args(Aggregate))}"
        require(self.aggregate in get_args(Aggregate), "aggregate", self.aggregate, rule)


@dataclass(frozen=True)
class Subtask:
    """A part of a step's task that is done before it, in a model call of its own.

    It is the step `member_id(step, name)`, which may have a setting of its own (its model, for
    one), is given what the step is given and the results of the subtasks before it, and answers
    in free text.

    Attributes:
        name: names its result in prompts and reports.
        instructions: what to do, said to the model.
    """

    name: str
    instructions: str

    def __post_init__(self) -> None:
        valid = isinstance(self.name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", self.name)
        rule = f"must be lower-case letters, digits and `_`, and not {choices(_RESERVED_MEMBERS)}"
        require(bool(valid) and self.name not in _RESERVED_MEMBERS, "subtask.name", self.name, rule)
        told = isinstance(self.instructions, str) and bool(self.instructions.strip())
        require(told, "subtask.instructions", self.instructions, "must say what to do")


@dataclass(frozen=True)
class Setting:
    """What changes at one step. A field that is None leaves the program as it is.

    Attributes:
        instructions: the new task description.
        demos: the worked examples to show, in this order; an empty tuple removes the user's own.
        reasoning: `chain_of_thought` and `plan` make the step write reasoning before it answers.
        model: the model to call.
        params: sampling parameters (temperature, max_tokens ...).
        ensemble: run several members and combine their answers.
        decompose: the subtasks to do first, in this order; the step itself, with all its other
            settings, then answers from its inputs and their results. They follow the step's
            model unless their own setting names another.
        engine: serving options that the step asks for (used by `adaseek serve --recipe`).
    """

    instructions: str | None = None
    demos: tuple[Demo, ...] | None = None
    reasoning: Reasoning | None = None
    model: ModelRef | None = None
    params: Mapping[str, Any] | None = None
    ensemble: Ensemble | None = None
    decompose: tuple[Subtask, ...] | None = None
    engine: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        valid = self.reasoning is None or self.reasoning in _REASONINGS
        require(valid, "reasoning", self.reasoning, _REASONING_RULE)
        if self.decompose is not None:
            names = [subtask.name for subtask in self.decompose]
            require(bool(names), "decompose", self.decompose, "must hold a subtask")
            require(len(set(names)) == len(names), "decompose", names, "must have distinct names")

    @property
    def is_empty(self) -> bool:
        return all(getattr(self, f.name) is None for f in fields(self))

    @cached_property
    def text(self) -> str:
        """The canonical JSON of the fields that are set."""
        return canonical_json(self.to_json())

    def merge(self, other: Setting) -> Setting:
        """Returns this setting with every field that `other` sets taken from `other`.

        `params` and `engine` are merged by name: two cogs may each set a parameter of their own.
        """
        changed = {f.name: getattr(other, f.name) for f in fields(other)}
        for name in ("params", "engine"):
            mine, theirs = getattr(self, name), changed[name]
            if mine is not None and theirs is not None:
                changed[name] = {**mine, **theirs}
        return replace(self, **{name: v for name, v in changed.items() if v is not None})

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that are set, as JSON values."""
        body: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if value is None:
                continue
            if name == "demos":
                body[name] = [{"values": dict(d.values), "source": d.source} for d in value]
            elif name in ("model", "ensemble"):
                body[name] = asdict(value)
            elif name == "decompose":
                body[name] = [asdict(subtask) for subtask in value]
            else:
                body[name] = dict(value) if isinstance(value, Mapping) else value
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Setting:
        """Returns the setting that `to_json` wrote.

        Raises:
            ConfigurationError: for a field or a value that this version does not know.
        """
        check_shape("the setting", body, Mapping)
        known = {f.name for f in fields(cls)}
        for name, value in body.items():
            if name in _SHAPES:
                check_shape(f"the setting `{name}`", value, _SHAPES[name])
            if name not in known:
                raise ConfigurationError(
                    f"The setting `{name}` is unknown; known are {choices(sorted(known))}. "
                    "The recipe may come from a newer adaseek: upgrade, or remove the field."
                )
        values = dict(body)
        if "demos" in values:
            values["demos"] = tuple(_read(Demo, "demos", demo) for demo in body["demos"])
        if "model" in values:
            values["model"] = _read(ModelRef, "model", body["model"])
        if "ensemble" in values:
            values["ensemble"] = _read(Ensemble, "ensemble", body["ensemble"])
        if "decompose" in values:
            values["decompose"] = tuple(_read(Subtask, "decompose", s) for s in body["decompose"])
        return cls(**values)


def member_id(step: str, member: int | str) -> str:
    """Returns the step id of one member (or the `judge`) of the ensemble at `step`, or of one of
    its subtasks by name."""
    return f"{step}#{member}"


def owner_id(step: str) -> str:
    """Returns the id of the step in the user's program that `step` belongs to."""
    return step.partition("#")[0]


_SHAPES: Mapping[str, type] = {
    "instructions": str,
    **dict.fromkeys(("demos", "decompose"), list),
    **dict.fromkeys(("model", "params", "ensemble", "engine"), Mapping),
}
"""Setting -> the JSON type that it has in a file."""


def check_shape(what: str, value: object, shape: type) -> None:
    """Raises `ConfigurationError` unless `what`, read from a recipe's file, is a `shape`."""
    if not isinstance(value, shape):
        wanted = "a text" if shape is str else "a list" if shape is list else "an object"
        raise ConfigurationError(
            f"In the recipe, {what} is {shortened(value)}, but must be {wanted}. Correct the file."
        )


def _read(kind: type[Value], name: str, body: Mapping[str, Any]) -> Value:
    try:
        return kind(**body)
    except TypeError as error:
        raise ConfigurationError(
            f"The setting `{name}` is {shortened(body)}, which cannot be read: {error}. "
            "The recipe may come from a newer adaseek: upgrade, or correct the value."
        ) from None


def shortened(value: Any, limit: int = 80) -> str:
    """Returns `value` as JSON text for a message, cut to `limit` characters."""
    text = "unchanged" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."
