"""A predictor with subtasks in front of it, whose results it is given beside its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any  # Any: predictions and signatures belong to DSPy, which is untyped

import dspy
from adaseek.recipe import Subtask
from adaseek.voting import UNVOTED_FIELDS

from adaseek_dspy._compat import error_kind
from adaseek_dspy._translate import REASONING_FIELDS

__all__ = ["DecomposedPredict", "given_results", "subtask_signature"]

_INSTRUCTIONS = """\
A larger task will be done later, from the same inputs. This is that task:

{task}

Do not do it now. Do only this part of it, which prepares it:

{subtask}"""


@lru_cache(maxsize=512)  # as for changed signatures: DSPy builds a pydantic class for each
def subtask_signature(signature: Any, split: tuple[Subtask, ...], index: int) -> Any:
    """Returns the signature of subtask `index` of `split` at a step with `signature`.

    Its inputs are those of the step and the results of the subtasks before it, its output is
    one text under the subtask's name.
    """
    subtask = split[index]
    made = given_results(signature, split[:index])
    for name in signature.output_fields:
        made = made.delete(name)
    output = dspy.OutputField(desc="the result of this part of the task")
    made = made.append(_field_names(signature, split)[index], output, type_=str)
    told = _INSTRUCTIONS.format(task=signature.instructions, subtask=subtask.instructions)
    return made.with_instructions(told)


@lru_cache(maxsize=512)
def given_results(signature: Any, split: tuple[Subtask, ...]) -> Any:
    """Returns `signature` with an input field more for the result of each subtask of `split`."""
    for name, subtask in zip(_field_names(signature, split), split, strict=True):
        about = f"worked out beforehand, when asked: {subtask.instructions}"
        signature = signature.append(name, dspy.InputField(desc=about), type_=str)
    return signature


def _field_names(signature: Any, split: Sequence[Subtask]) -> list[str]:
    """Returns the name of each subtask's field; one that is taken gets a `_`.

    Taken are the step's own, and those in which it reasons or may be made to.
    """
    taken, names = {*signature.fields, *UNVOTED_FIELDS, *REASONING_FIELDS.values()}, list[str]()
    for subtask in split:
        name = subtask.name
        while name in taken:
            name += "_"
        taken.add(name)
        names.append(name)
    return names


class DecomposedPredict(dspy.Module):  # type: ignore[misc]  # DSPy is untyped
    """Does `subtasks` in their order, then answers with `answering` from inputs and results.

    It stands where a `dspy.Predict` stood, so it answers for the predictor's attributes: with the
    step's own signature, and else with those of `answering`. A subtask whose answer cannot be
    parsed has an empty result; every other failure is raised.

    Args:
        subtasks: one predictor for each, with one output field.
        answering: the predictor, or the ensemble, that gives the answer.
        signature: the step's signature, without the fields of the results.
    """

    def __init__(self, subtasks: Sequence[Any], answering: Any, signature: Any) -> None:
        super().__init__()
        self.subtasks = list(subtasks)
        self.answering = answering
        self.signature = signature

    @property
    def demos(self) -> Any:
        return self.answering.demos

    @property
    def lm(self) -> Any:
        return self.answering.lm

    @property
    def config(self) -> Any:
        return self.answering.config

    def forward(self, **kwargs: Any) -> Any:
        """Returns the prediction of `answering`."""
        results: dict[str, str] = {}
        for subtask in self.subtasks:
            name, inputs = self._asked(subtask, kwargs)
            try:
                results[name] = subtask(**inputs, **results)[name]
            except Exception as error:
                results[name] = _without_result(error)
        return self.answering(**kwargs, **results)

    async def aforward(self, **kwargs: Any) -> Any:
        """As `forward`."""
        results: dict[str, str] = {}
        for subtask in self.subtasks:
            name, inputs = self._asked(subtask, kwargs)
            try:
                results[name] = (await subtask.acall(**inputs, **results))[name]
            except Exception as error:
                results[name] = _without_result(error)
        return await self.answering.acall(**kwargs, **results)

    def _asked(self, subtask: Any, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Returns the name of the subtask's output, and what of `kwargs` is an input of it."""
        (name,) = subtask.signature.output_fields
        return name, {k: v for k, v in kwargs.items() if k in self.signature.input_fields}


def _without_result(error: Exception) -> str:
    if error_kind(error) != "model":
        raise error
    return ""
