"""What a recorder notes while a program runs: the calls around requests, and the requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any  # Any: inputs and outputs belong to the user's program

from adaseek.workflow import ModelRef, StepKind, Usage

__all__ = ["Frame", "Request"]


@dataclass
class Frame:
    """One DSPy call that encloses others: a predictor, a tool, an interpreter, or any module."""

    id: str
    parent: str | None
    kind: StepKind | None
    step: str
    start_s: float
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    end_s: float = 0.0
    error: str | None = None
    is_predictor: bool = False

    @property
    def is_member(self) -> bool:
        """Whether this is one of the calls that an ensemble makes at the same time."""
        return self.is_predictor and self.step.rpartition("#")[2].isdecimal()


@dataclass
class Request:
    """One request to a language model.

    Attributes:
        duration_s: None if a cache answered that kept none.
        run, real_start_s: the run whose request was answered, and when that one began: this run,
            or an earlier one whose answer the memo kept.
    """

    id: str
    parent: str | None
    model: ModelRef
    start_s: float
    end_s: float = 0.0
    duration_s: float | None = 0.0
    usage: Usage = field(default_factory=Usage)
    cached: bool = False
    failure: BaseException | None = None
    run: str = ""
    real_start_s: float = 0.0
