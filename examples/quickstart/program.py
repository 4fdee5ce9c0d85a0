"""A DSPy program that solves swap puzzles: two models read the story, Python does the swaps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any  # Any: DSPy is untyped

import dspy

__all__ = ["SwapPuzzle", "load_examples", "metric", "program"]

_DATA = Path(__file__).with_name("data")
_HOLDING = re.compile(r"(\w+) ?= ?([^;\n]+)")
_SWAP = re.compile(r"(\w+) ?- ?(\w+)")
_OPTION = re.compile(r"^(\([A-C]\)) (.+)$", re.MULTILINE)


class FindHoldings(dspy.Signature):
    """Who holds what at the start?"""

    story: str = dspy.InputField()
    holdings: str = dspy.OutputField(desc="e.g. Ann=red ball; Tom=blue ball")


class ListSwaps(dspy.Signature):
    """List the swaps in order."""

    story: str = dspy.InputField()
    swaps: str = dspy.OutputField(desc="pairs of names, e.g. Ann-Tom; Tom-Joe")


class SwapPuzzle(dspy.Module):
    """Answers who ends up with what after some swaps, as the letter of an option."""

    def __init__(self) -> None:
        super().__init__()
        self.start = dspy.Predict(FindHoldings)
        self.swaps = dspy.Predict(ListSwaps)

    def forward(self, question: str) -> dspy.Prediction:
        story, _, options = question.partition("\nOptions:\n")
        opening, _, events = story.partition("\n")
        moves, _, asked = events.rpartition(". ")
        holdings = self.start(story=opening).holdings
        swaps = self.swaps(story=f"{moves}.").swaps
        held = _replay(holdings, swaps)
        name = next((name for name in held if re.search(rf"\b{name}\b", asked)), None)
        return dspy.Prediction(answer=_choose(held[name], options) if name else "")


def metric(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> bool:
    """Returns whether the chosen option is the right one."""
    return bool(prediction.answer == example.answer)


def load_examples(split: str) -> list[dspy.Example]:
    """Returns the puzzles of `split`: "train", "val" or "test"."""
    lines = (_DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [dspy.Example(**json.loads(line)).with_inputs("question") for line in lines]


def _replay(holdings: str, swaps: str) -> dict[str, str]:
    """Returns what each person holds after the swaps; nothing, if a swap names a stranger."""
    held = {name: thing.strip() for name, thing in _HOLDING.findall(holdings)}
    for first, second in _SWAP.findall(swaps):
        if first not in held or second not in held:
            return {}
        held[first], held[second] = held[second], held[first]
    return held


def _choose(thing: str, options: str) -> str:
    """Returns the letter of the option that names `thing`, or "" if none does."""
    named = thing.casefold()
    for letter, option in _OPTION.findall(options):
        # The models shorten: "Karl" for "dancing with Karl", "red" for "red ball".
        if named and (named in option.casefold() or option.casefold() in named):
            return str(letter)
    return ""


program = SwapPuzzle()
