"""A predictor replaced by several of its kind whose answers are combined."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any  # Any: predictions belong to DSPy, which is untyped

import dspy
from adaseek.recipe import Aggregate
from adaseek.voting import UNVOTED_FIELDS, majority_index

from adaseek_dspy._compat import error_kind

__all__ = ["EnsemblePredict", "Reward", "judge_signature"]

Reward = Callable[[Mapping[str, Any], Any], float]
"""The inputs of the step and one member's prediction -> a number, higher is better (DSPy's own
form for BestOfN)."""

_JUDGE_INSTRUCTIONS = (
    "Several answers were given to the same task with the same inputs. Compare them and choose "
    "the one that is most consistent with the others. Reply with its number."
)


def judge_signature() -> Any:
    """Returns the signature of the step that chooses among answers.

    Source: universal self-consistency (arXiv 2311.17311); the wording is ours.
    """
    fields = {
        "task": (str, dspy.InputField(desc="what was asked for")),
        "inputs": (str, dspy.InputField(desc="what it was asked about")),
        "answers": (str, dspy.InputField(desc="the numbered answers")),
        "choice": (int, dspy.OutputField(desc="the number of the chosen answer")),
    }
    make: Any = dspy.Signature  # its metaclass makes a class of a dict
    return make(fields, _JUDGE_INSTRUCTIONS)


class EnsemblePredict(dspy.Module):  # type: ignore[misc]  # DSPy is untyped
    """Runs `members` at the same time and returns the prediction that `aggregate` prefers.

    It stands where a `dspy.Predict` stood, so it answers for the predictor's attributes with
    those of its first member. A member whose answer cannot be parsed is left out as long as
    another one answers; every other failure is raised.

    Args:
        members: copies of the predictor, each with its own settings.
        judge: the predictor that chooses, for aggregate `judge`.
        reward: the function that rates, for aggregate `best_of`.
    """

    def __init__(
        self,
        members: Sequence[Any],
        *,
        aggregate: Aggregate,
        judge: Any = None,
        reward: Reward | None = None,
    ) -> None:
        super().__init__()
        self.members = list(members)
        self.judge = judge
        self.aggregate = aggregate
        self.reward = reward

    @property
    def signature(self) -> Any:
        return self.members[0].signature

    @property
    def demos(self) -> Any:
        return self.members[0].demos

    @property
    def lm(self) -> Any:
        return self.members[0].lm

    @property
    def config(self) -> Any:
        return self.members[0].config

    def forward(self, **kwargs: Any) -> Any:
        """Returns the chosen prediction; members run in threads, so it takes as long as one."""
        with ThreadPoolExecutor(len(self.members)) as pool:
            runs = [
                pool.submit(contextvars.copy_context().run, _run, member, kwargs)
                for member in self.members
            ]
            outcomes = [run.result() for run in runs]
        predictions = _usable(outcomes)
        if not self._asks_judge(predictions):
            return self._chosen(predictions, kwargs)
        return _judged(predictions, self.judge(**self._judge_inputs(predictions, kwargs)))

    async def aforward(self, **kwargs: Any) -> Any:
        """Returns the chosen prediction; members run as tasks of one event loop."""
        outcomes = await asyncio.gather(*(_arun(member, kwargs) for member in self.members))
        predictions = _usable(outcomes)
        if not self._asks_judge(predictions):
            return self._chosen(predictions, kwargs)
        inputs = self._judge_inputs(predictions, kwargs)
        return _judged(predictions, await self.judge.acall(**inputs))

    def _asks_judge(self, predictions: Sequence[Any]) -> bool:
        """Returns whether there is something to judge: equal answers need no judge."""
        if self.aggregate != "judge":
            return False
        return len({_shown(prediction) for prediction in predictions}) > 1

    def _chosen(self, predictions: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        reward = self.reward
        if self.aggregate == "best_of" and reward is not None:
            rewards = [reward(dict(kwargs), prediction) for prediction in predictions]
            return predictions[rewards.index(max(rewards))]
        return predictions[majority_index([_answer(p) for p in predictions])]

    def _judge_inputs(
        self, predictions: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, str]:
        inputs = {k: v for k, v in kwargs.items() if k in self.signature.input_fields}
        answers = [f"[{i}] {_shown(p)}" for i, p in enumerate(predictions, start=1)]
        return {
            "task": self.signature.instructions,
            "inputs": _text(inputs),
            "answers": "\n".join(answers),
        }


_Outcome = tuple[Any, BaseException | None]


def _run(member: Any, kwargs: Mapping[str, Any]) -> tuple[_Outcome, list[Any]]:
    # A trace list of its own keeps the order of the shared one independent of thread timing, and
    # a worker thread has no event loop to stream through.
    with dspy.context(trace=[], send_stream=None):
        try:
            return (member(**kwargs), None), list(dspy.settings.trace)
        except Exception as error:  # judged in `_usable`, once every member is done
            return (None, error), []


async def _arun(member: Any, kwargs: Mapping[str, Any]) -> tuple[_Outcome, list[Any]]:
    with dspy.context(trace=[], send_stream=None):
        try:
            return (await member.acall(**kwargs), None), list(dspy.settings.trace)
        except Exception as error:  # as in `_run`
            return (None, error), []


def _usable(outcomes: Sequence[tuple[_Outcome, list[Any]]]) -> list[Any]:
    """Returns the predictions, in member order, and adds their traces to DSPy's.

    Raises:
        Exception: the first failure that is not a mere unusable answer, or the first of all if no
            member answered.
    """
    errors = [error for (_, error), _ in outcomes if error is not None]
    serious = [error for error in errors if error_kind(error) != "model"]
    if serious or len(errors) == len(outcomes):
        raise (serious or errors)[0]
    if dspy.settings.trace is not None:
        for _, trace in outcomes:
            dspy.settings.trace.extend(trace)
    return [prediction for (prediction, error), _ in outcomes if error is None]


def _judged(predictions: Sequence[Any], verdict: Any) -> Any:
    choice = getattr(verdict, "choice", None)
    if isinstance(choice, int) and 1 <= choice <= len(predictions):
        return predictions[choice - 1]
    return predictions[majority_index([_answer(p) for p in predictions])]


def _answer(prediction: Any) -> dict[str, Any]:
    return dict(prediction.items())


def _shown(prediction: Any) -> str:
    answer = _answer(prediction)
    return _text({k: v for k, v in answer.items() if k not in UNVOTED_FIELDS} or answer)


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), ensure_ascii=False, default=str)
