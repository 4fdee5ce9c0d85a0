"""Majority votes over the answers of several runs of one step; pure and framework-free."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from adaseek._canonical import canonical_json
from adaseek.errors import require

__all__ = ["UNVOTED_FIELDS", "majority", "majority_index", "normalised"]

Answer = TypeVar("Answer")

UNVOTED_FIELDS = frozenset({"reasoning", "rationale"})
"""Output fields that explain an answer instead of being one; they never vote."""

_QUOTES = "\"'`\u201c\u201d\u2018\u2019"
_NUMBER = re.compile(r"[+-]?([0-9]+|[0-9]{1,3}(,[0-9]{3})+)(\.[0-9]+)?")


def majority(answers: Sequence[Answer], *, key: Callable[[Answer], Hashable]) -> int:
    """Returns the index of the first answer whose `key` is the most frequent one.

    Of two keys that are equally frequent, the one seen first wins.

    Raises:
        ConfigurationError: if there are no answers.
    """
    require(len(answers) > 0, "answers", answers, "must hold at least one answer")
    keys = [key(answer) for answer in answers]
    counts = Counter(keys)
    return max(range(len(keys)), key=lambda i: counts[keys[i]])


def majority_index(answers: Sequence[Mapping[str, object]]) -> int:
    """Returns the index of the answer that agrees most with the others, field by field.

    An answer gets one point for each field of each answer (its own too) that holds the same
    normalised value; ties go to the first. With one field this is the plain majority. With an
    answer and a free text beside it, the text never repeats, so the answer decides. Fields that
    explain (`UNVOTED_FIELDS`) give no points, unless there are no others; empty values give none.

    Source: self-consistency (arXiv 2203.11171), extended to answers of several fields.

    Raises:
        ConfigurationError: if there are no answers.
    """
    require(len(answers) > 0, "answers", answers, "must hold at least one answer")
    ballots = [_ballot(answer) for answer in answers]
    votes = Counter(vote for ballot in ballots for vote in ballot)
    points = [sum(votes[vote] for vote in ballot) for ballot in ballots]
    return points.index(max(points))


def normalised(value: object) -> str:
    """Returns `value` as text in which only differences in meaning are left.

    Case, white space, quotes around and punctuation after the text do not count; numbers are
    compared by value (`1,000`, `1000` and `1000.0` are equal). None and blank text give "".
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).casefold()
    if isinstance(value, int | float):
        return _number(str(value))
    if isinstance(value, Mapping):
        return canonical_json({str(k): normalised(v) for k, v in value.items()}) if value else ""
    if isinstance(value, list | tuple):
        return canonical_json([normalised(item) for item in value]) if value else ""
    return _text(str(value))


def _ballot(answer: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    voting = answer.keys() - UNVOTED_FIELDS or answer.keys()
    votes = ((name, normalised(v)) for name, v in answer.items() if name in voting)
    return tuple((name, value) for name, value in votes if value)


def _text(text: str) -> str:
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    previous = ""
    while folded != previous:  # quotes may hide punctuation and the other way round
        previous = folded
        folded = folded.strip(_QUOTES + " ").rstrip(".,;:! ")
    return _number(folded) if _NUMBER.fullmatch(folded) else folded


def _number(text: str) -> str:
    # Whole numbers stay text: a float would merge distinct long ids.
    digits = text.replace(",", "")
    whole, _, fraction = digits.partition(".")
    magnitude = whole.lstrip("+-")
    if not magnitude.isdigit() or fraction.strip("0"):
        return str(float(digits))
    value = magnitude.lstrip("0") or "0"
    return f"-{value}" if whole.startswith("-") and value != "0" else value
