"""What a setting means in DSPy: models, signatures and demos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek.errors import ConfigurationError, choices
from adaseek.recipe import Demo, Setting
from adaseek.workflow import ModelRef
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from adaseek_dspy._convert import model_reference
from adaseek_dspy._translate import REASONING_FIELDS, reasoning_fields

__all__ = ["Models", "changed_signature", "check_applicable", "typed_demos"]

_REASONING_HINTS = {
    "chain_of_thought": "${reasoning}",  # what dspy.ChainOfThought writes
    "plan": "a short plan of the steps that lead to the answer, made before answering",
}


class Models:
    """The language model of each reference, one object per reference and origin."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._made: dict[tuple[str, int], Any] = {}

    def get(self, reference: ModelRef, own: Any) -> Any:
        """Returns the model of `reference`; without a given one, `own` under another name.

        A key belongs to the endpoint that it was made for: it does not go along to another one.
        """
        if reference.key in self._given:
            return self._given[reference.key]
        if own is None:
            raise ConfigurationError(
                f"The recipe asks for the model '{reference.key}', but it is not in `models` "
                f"({choices(self._given) or 'empty'}) and there is no language model to make it "
                "from. Pass it in `models`, or call dspy.configure(lm=...) first."
            )
        made = (reference.key, id(own))
        if made not in self._made:
            self._made[made] = _renamed(own, reference)
        return self._made[made]


def _renamed(own: Any, reference: ModelRef) -> Any:
    current = model_reference(own)
    if current == reference:
        return own
    if current.endpoint == reference.endpoint:
        return own.copy(model=reference.id)
    dropped = dict.fromkeys(("base_url", "api_key", "extra_headers", "headers"))
    known = {name: None for name in dropped if name in own.kwargs}
    return own.copy(model=reference.id, **known, api_base=reference.endpoint or None)


def check_applicable(step: str, setting: Setting, signature: Any) -> None:
    """Raises `ConfigurationError` if `setting` holds something that `step` cannot take."""
    for name in ("decompose", "ensemble"):
        if getattr(setting, name) is not None:
            raise ConfigurationError(
                f"The recipe sets `{name}` at step `{step}`, but the DSPy adapter does not apply "
                f"it there. Remove `{name}` from that step of the recipe."
            )
    present = reasoning_fields(signature)
    if setting.reasoning not in (None, "off") and present:
        raise ConfigurationError(
            f"The recipe sets `reasoning` to '{setting.reasoning}' at step `{step}`, but that step "
            f"already reasons in its field `{present[0]}`. Remove `reasoning` from that step."
        )


def changed_signature(signature: Any, setting: Setting) -> Any:
    """Returns `signature` with the setting's instructions and reasoning field; a new class."""
    return _changed_signature(signature, setting.instructions, setting.reasoning or "off")


@lru_cache(maxsize=512)
def _changed_signature(signature: Any, instructions: str | None, reasoning: str) -> Any:
    # Remembered because DSPy builds a pydantic class for each change (about 1 ms), and a search
    # applies few different settings very often.
    if instructions is not None:
        signature = signature.with_instructions(instructions)
    if reasoning == "off":
        return signature
    # In place rather than by ChainOfThought: the path of the step stays, and so do saved states.
    field = dspy.OutputField(desc=_REASONING_HINTS[reasoning])
    return signature.prepend(REASONING_FIELDS[reasoning], field, type_=str)


def typed_demos(demos: Iterable[Demo], signature: Any) -> list[Any]:
    """Returns `demos` as DSPy examples, each value in the type that `signature` declares."""
    return [_demo(demo, signature) for demo in demos]


def _demo(demo: Demo, signature: Any) -> Any:
    values = {name: _typed(name, value, signature) for name, value in demo.values.items()}
    return dspy.Example(**values).with_inputs(*(n for n in values if n in signature.input_fields))


def _typed(name: str, value: Any, signature: Any) -> Any:
    """Returns a demo's JSON value in the type that the signature declares, if it can be."""
    field = signature.fields.get(name)
    if field is None or field.annotation is str:
        return value
    try:
        return TypeAdapter(field.annotation).validate_python(value)
    except (ValidationError, PydanticUserError, TypeError):
        return value  # shown as it is; a demo is text to the model in any case
