"""What a tuning run leaves: candidates with honest estimates, the Pareto set, a recommendation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any  # Any: JSON values

from adaseek.errors import ConfigurationError, choices
from adaseek.recipe import Recipe
from adaseek.workflow import Workflow

__all__ = ["Candidate", "Estimate", "Heldout", "Spending", "TuningResult"]

RESULT_FILE = "result.json"
FEWEST_PAIRS = 5
"""Fewer pairs than this support no claim: their spread cannot be told from luck."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `num` examples with the bounds of its 95% confidence interval."""

    mean: float
    low: float
    high: float
    num: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One evaluated config.

    Attributes:
        name: `original`, or `trial N`.
        config: dimension -> option key.
        recipe: what it sets, bound to the workflow.
        train: objective -> estimate on the training examples that it saw. Unknown ones absent.
        validation: the same on validation examples; empty if it was not validated.
        pareto: it belongs to the Pareto set of the run.
        layer_path: trial numbers of the outer layers that it was searched under.
        num_failed: workflow runs of it that failed.
    """

    name: str
    config: Mapping[str, str]
    recipe: Recipe
    train: Mapping[str, Estimate] = field(default_factory=dict)
    validation: Mapping[str, Estimate] = field(default_factory=dict)
    pareto: bool = False
    layer_path: tuple[int, ...] = ()
    num_failed: int = 0

    def value(self, objective: str) -> float | None:
        """Returns the best estimate of `objective`: validated if possible, None if unknown."""
        estimate = self.validation.get(objective) or self.train.get(objective)
        return None if estimate is None else estimate.mean


@dataclass(frozen=True)
class Spending:
    """Where workflow runs and money went; `phases` maps a phase to the runs it used."""

    budget: int
    num_runs: int
    num_replayed: int = 0
    cost_usd: float | None = None
    phases: Mapping[str, int] = field(default_factory=dict)
    num_calls: int = 0
    num_memo_calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Heldout:
    """The unchanged program and a recipe on the same examples.

    Attributes:
        original, tuned: objective -> estimate; unknown objectives are absent.
        difference: objective -> estimate of tuned minus original, paired by example.
    """

    original: Mapping[str, Estimate]
    tuned: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]


@dataclass(frozen=True)
class TuningResult:
    """The outcome of a run.

    Attributes:
        verdict: one sentence: the gain with its interval, or `no significant gain`.
        recommended: the candidate that AdaSeek would use; the original if nothing was better.
        improvement: objective -> estimate of the paired difference (recommended - original) on
            validation examples.
        importance: dimension -> share of the variance of the first objective that it explains.
        events: the run's events as JSON values, in order; what the report draws.
        ended: `budget`, `converged`, `interrupted`, or the limit that ended the search.
    """

    workflow: Workflow
    objectives: tuple[str, ...]
    original: Candidate
    candidates: tuple[Candidate, ...]
    recommended: Candidate
    verdict: str
    spending: Spending
    improvement: Mapping[str, Estimate] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()
    ended: str = "budget"
    seed: int = 0
    run_dir: str = ""

    @property
    def recipe(self) -> Recipe:
        """The recommended recipe; empty if nothing was better than the original."""
        return self.recommended.recipe

    def pareto(self) -> tuple[Candidate, ...]:
        """Returns the Pareto set, best quality first, then cheapest, then fastest."""
        front = [c for c in self.candidates if c.pareto]
        return tuple(sorted(front, key=_preference))

    def select(
        self,
        *,
        min_quality: float | None = None,
        max_cost: float | None = None,
        max_latency: float | None = None,
    ) -> Candidate:
        """Returns the best candidate of the Pareto set within the bounds, by quality first.

        Args:
            min_quality: smallest mean score.
            max_cost: largest mean cost in USD per run; a candidate of unknown cost is left out.
            max_latency: largest mean latency in seconds; likewise.

        Raises:
            ConfigurationError: if no candidate is within the bounds; the message lists them all.
        """
        bounds = {"cost": max_cost, "latency": max_latency}
        for candidate in self.pareto():
            quality = candidate.value("quality")
            enough = min_quality is None or (quality is not None and quality >= min_quality)
            if enough and all(_within(candidate, name, bound) for name, bound in bounds.items()):
                return candidate
        asked = {"min_quality": min_quality, "max_cost": max_cost, "max_latency": max_latency}
        limits = ", ".join(f"{k}={v}" for k, v in asked.items() if v is not None)
        have = choices(f"{c.name}: {_values(c)}" for c in self.pareto())
        raise ConfigurationError(f"No candidate meets {limits}; the Pareto set has {have}.")

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes one self-contained HTML page to `path` and returns it.

        Raises:
            ConfigurationError: if plotly is not installed (`pip install 'adaseek[report]'`).
        """
        from adaseek.report import write_report

        return write_report(self, path)

    def to_json(self) -> dict[str, Any]:
        """Returns this result as JSON values."""
        body = self._body()
        return {k: list(v) if isinstance(v, Iterator) else v for k, v in body.items()}

    def _body(self) -> dict[str, Any]:
        """Returns what `to_json` does, with iterators in place of the two long lists."""
        return {
            "workflow": self.workflow.to_json(),
            "objectives": list(self.objectives),
            "original": self.original.name,
            "recommended": self.recommended.name,
            "candidates": map(_candidate_json, self.candidates),
            "verdict": self.verdict,
            "spending": asdict(self.spending),
            "improvement": {k: asdict(v) for k, v in self.improvement.items()},
            "importance": dict(self.importance),
            "events": iter(self.events),
            "ended": self.ended,
            "seed": self.seed,
            "run_dir": self.run_dir,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TuningResult:
        """Returns the result that `to_json` wrote."""
        candidates = {c["name"]: _candidate_from_json(c) for c in body["candidates"]}
        return cls(
            workflow=Workflow.from_json(body["workflow"]),
            objectives=tuple(body["objectives"]),
            original=candidates[body["original"]],
            recommended=candidates[body["recommended"]],
            candidates=tuple(candidates.values()),
            verdict=body["verdict"],
            spending=Spending(**body["spending"]),
            improvement=_estimates(body["improvement"]),
            importance=dict(body["importance"]),
            events=tuple(body["events"]),
            ended=body["ended"],
            seed=body["seed"],
            run_dir=body["run_dir"],
        )

    def save(self, run_dir: str | os.PathLike[str]) -> Path:
        """Writes `result.json` into `run_dir` in one step and returns its path."""
        target = Path(run_dir) / RESULT_FILE
        partial = target.with_suffix(".part")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(_json_pieces(self._body()))
        return partial.replace(target)

    @classmethod
    def load(cls, run_dir: str | os.PathLike[str]) -> TuningResult:
        """Returns the result of the run in `run_dir`.

        Raises:
            ConfigurationError: if that folder holds no finished run.
        """
        file = Path(run_dir) / RESULT_FILE
        if not file.exists():
            raise ConfigurationError(
                f"`run_dir` is {str(run_dir)!r}, but it holds no {RESULT_FILE}. "
                "Name the folder of a run that has ended, or start that run again to finish it."
            )
        return cls.from_json(json.loads(file.read_text(encoding="utf-8")))


def _json_pieces(body: Mapping[str, Any]) -> Iterator[str]:
    """Yields the JSON text of `body`; of an iterator in it, one item at a time."""
    for key, value in body.items():
        yield f"{'{' if key == next(iter(body)) else ', '}{_json(key)}: "
        if not isinstance(value, Iterator):
            yield _json(value)
            continue
        yield "["
        for index, item in enumerate(value):
            yield f"{', ' if index else ''}{_json(item)}"
        yield "]"
    yield "}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _preference(candidate: Candidate) -> tuple[float, float, float]:
    quality, cost, latency = (candidate.value(o) for o in ("quality", "cost", "latency"))
    return (-(quality or 0.0), cost or 0.0, latency or 0.0)


def _within(candidate: Candidate, objective: str, bound: float | None) -> bool:
    value = candidate.value(objective)
    return bound is None or (value is not None and value <= bound)


def _values(candidate: Candidate) -> str:
    known = ((name, candidate.value(name)) for name in ("quality", "cost", "latency"))
    return " ".join(f"{name} {value:.4g}" for name, value in known if value is not None)


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "name": candidate.name,
        "config": dict(candidate.config),
        "recipe": candidate.recipe.to_json(),
        "train": {k: asdict(v) for k, v in candidate.train.items()},
        "validation": {k: asdict(v) for k, v in candidate.validation.items()},
        "pareto": candidate.pareto,
        "layer_path": list(candidate.layer_path),
        "num_failed": candidate.num_failed,
    }


def _candidate_from_json(body: Mapping[str, Any]) -> Candidate:
    return Candidate(
        name=body["name"],
        config=dict(body["config"]),
        recipe=Recipe.from_json(body["recipe"]),
        train=_estimates(body["train"]),
        validation=_estimates(body["validation"]),
        pareto=body["pareto"],
        layer_path=tuple(body["layer_path"]),
        num_failed=body["num_failed"],
    )


def _estimates(body: Mapping[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**value) for name, value in body.items()}
