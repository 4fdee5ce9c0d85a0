"""AdaSeek as a DSPy optimizer: `AdaSeek(metric=...).compile(program, trainset=...)`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack  # Any: DSPy is untyped

import dspy
from adaseek.cogs.base import Cog
from adaseek.errors import ConfigurationError, choices, require
from adaseek.events import Event
from adaseek.search.base import Constraint
from adaseek.tuner import Tuner
from dspy.teleprompt import Teleprompter
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from adaseek_dspy._apply import apply
from adaseek_dspy._convert import model_reference
from adaseek_dspy._translate import is_program

__all__ = ["AdaSeek"]


class TunerSettings(TypedDict, total=False):
    """The arguments that `AdaSeek` hands to `adaseek.tuner.Tuner` as they are."""

    objectives: Sequence[str] | None
    constraints: Sequence[Constraint] | None
    cogs: Sequence[Cog] | None
    prices: Mapping[str, Mapping[str, float]] | None
    seed: int
    concurrency: Mapping[str, int] | None
    journal: str | None
    max_cost_usd: float | None
    max_tokens: int | None
    max_seconds: float | None
    timeout_s: float | None
    failure_score: float
    score_span: float
    sampler: BaseSampler | None
    storage: BaseStorage | None
    plugins: Sequence[object]
    verbose: bool


class AdaSeek(Teleprompter):  # type: ignore[misc]  # DSPy is untyped
    """Tunes a DSPy program for quality, cost and latency at once.

    Args:
        metric: `metric(example, prediction, trace=None)`, or the five-argument form that returns
            `dspy.Prediction(score=..., feedback=...)`; higher is better.
        auto: `light`, `medium` or `heavy`; `light` if `budget` is not given either.
        budget: workflow runs in all: validation and baseline runs are included.
        models: language models to choose from, per step; the program's own are always there.
        objectives: some of `quality`, `cost`, `latency`; None: all that can be known.
        constraints: bounds to keep; None: quality at least the original's.
        prices: model name -> {"input": USD per 1M tokens, "output": ...} or
            {"per_second": USD per engine-second}.
        prompt_model: proposes instructions; None: the program's own model, False: nobody does.
        num_threads: workflow runs at once; None: DSPy's setting.
        run_dir, log_dir: two names of the folder of the run; start again with the same one to
            resume. None: a new folder in the user's state directory.
        track_stats: whether the tuned program gets `detailed_results`.
        rewards: name -> reward function `(arguments, prediction) -> float` for `best_of`.

    The other arguments are those of `adaseek.tuner.Tuner`.
    """

    def __init__(
        self,
        metric: Callable[..., Any],
        *,
        auto: str | None = None,
        budget: int | None = None,
        models: Sequence[Any] = (),
        prompt_model: Any = None,
        rewards: Mapping[str, Callable[..., Any]] | None = None,
        num_threads: int | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        max_errors: int | None = None,
        callbacks: Sequence[Callable[[Event], None]] = (),
        track_stats: bool = True,
        **others: Unpack[TunerSettings],
    ) -> None:
        super().__init__()
        require(
            run_dir is None or log_dir is None,
            "log_dir",
            log_dir,
            "is another name of run_dir",
            cure="Give one of them.",
        )
        _check_known(others)
        self.track_stats = track_stats
        self.prompt_model = prompt_model
        self.models = list(models)
        self.tuner = Tuner(
            metric,
            auto=auto,
            budget=budget,
            models=self.models,
            rewards=dict(rewards or {}),
            num_threads=_either(num_threads, dspy.settings.get("num_threads"), 8),
            run_dir=run_dir if run_dir is not None else log_dir,
            max_errors=_either(max_errors, dspy.settings.get("max_errors"), 10),
            listeners=tuple(callbacks),
            **others,
        )

    def compile(
        self,
        student: Any,
        *,
        trainset: Sequence[Any],
        teacher: Any = None,
        valset: Sequence[Any] | None = None,
        seed: int | None = None,
        budget: int | None = None,
        num_threads: int | None = None,
        **unknown: Any,
    ) -> Any:
        """Returns a tuned copy of `student`, callable like it; `student` is never changed.

        The copy's `detailed_results` is a `TuningResult`: Pareto set, other trade-offs, recipe
        and report. If nothing was better, the copy behaves as `student`.

        Args:
            student: any `dspy.Module`.
            trainset: examples with inputs set (`dspy.Example.with_inputs`).
            teacher: not used; AdaSeek bootstraps from the program's own best runs.
            valset: examples for the final comparison; None: half of `trainset`.
            seed, budget, num_threads: replace those of the constructor for this call.

        Raises:
            AdaseekError: see `adaseek.tuner.Tuner.tune`.
        """
        if not is_program(student):
            raise ConfigurationError(
                f"`student` is a {type(student).__name__}, but must be a dspy.Module."
            )
        require(teacher is None, "teacher", teacher, "is not used by AdaSeek", cure="Leave it out.")
        require(
            not unknown,
            "compile(...)",
            sorted(unknown),
            "takes only student, trainset, teacher, valset, seed, budget and num_threads",
            cure="Other settings go to AdaSeek(...).",
        )
        changes = {"seed": seed, "num_threads": num_threads}
        if budget is not None:
            changes |= {"budget": budget}
        tuner = self.tuner.replaced(
            proposer=self._proposer(student),
            **({"auto": None} if budget is not None else {}),
            **{name: value for name, value in changes.items() if value is not None},
        )
        result = tuner.tune(student, trainset=trainset, valset=valset)
        tuned = apply(
            student,
            result.recipe,
            models={model_reference(lm).key: lm for lm in self.models},
            rewards=tuner.rewards,
        )
        if self.track_stats:
            tuned.detailed_results = result
        return tuned

    def _proposer(self, student: Any) -> Any:
        if self.prompt_model is False:
            return None
        if self.prompt_model is not None:
            return self.prompt_model
        own = [p.lm for p in student.predictors() if p.lm is not None]
        return dspy.settings.lm or next(iter(own), None)


def _check_known(others: TunerSettings) -> None:
    known = TunerSettings.__annotations__
    unknown = sorted(name for name in others if name not in known)
    require(
        not unknown,
        "AdaSeek(...)",
        unknown,
        f"takes no such arguments; besides those of its signature it takes {choices(known)}",
    )


def _either(*values: int | None) -> int:
    return next(value for value in values if value is not None)
