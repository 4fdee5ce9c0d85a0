"""AdaSeek as a DSPy optimizer: `AdaSeek(metric=...).compile(program, trainset=...)`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any  # Any: DSPy is untyped

import dspy
from adaseek.cogs.base import Cog
from adaseek.errors import ConfigurationError, require
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
        objectives: Sequence[str] | None = None,
        constraints: Sequence[Constraint] | None = None,
        cogs: Sequence[Cog] | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        prompt_model: Any = None,
        rewards: Mapping[str, Callable[..., Any]] | None = None,
        seed: int = 0,
        num_threads: int | None = None,
        concurrency: Mapping[str, int] | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        journal: str | None = None,
        max_cost_usd: float | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
        max_errors: int | None = None,
        timeout_s: float | None = None,
        failure_score: float = 0.0,
        score_span: float = 1.0,
        sampler: BaseSampler | None = None,
        storage: BaseStorage | None = None,
        plugins: Sequence[object] = (),
        callbacks: Sequence[Callable[[Event], None]] = (),
        track_stats: bool = True,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        require(
            run_dir is None or log_dir is None,
            "log_dir",
            log_dir,
            "is another name of run_dir",
            cure="Give one of them.",
        )
        require(not isinstance(models, str), "models", models, "must be a list of models")
        self.track_stats = track_stats
        self.prompt_model = prompt_model
        self.models = list(models)
        self.tuner = Tuner(
            metric,
            auto=auto,
            budget=budget,
            models=self.models,
            objectives=objectives,
            constraints=constraints,
            cogs=cogs,
            prices=prices,
            rewards=dict(rewards or {}),
            seed=seed,
            num_threads=_either(num_threads, dspy.settings.get("num_threads"), 8),
            concurrency=concurrency,
            run_dir=run_dir if run_dir is not None else log_dir,
            journal=journal,
            max_cost_usd=max_cost_usd,
            max_tokens=max_tokens,
            max_seconds=max_seconds,
            max_errors=_either(max_errors, dspy.settings.get("max_errors"), 10),
            timeout_s=timeout_s,
            failure_score=failure_score,
            score_span=score_span,
            sampler=sampler,
            storage=storage,
            plugins=plugins,
            listeners=tuple(callbacks),
            verbose=verbose,
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


def _either(*values: int | None) -> int:
    return next(value for value in values if value is not None)
