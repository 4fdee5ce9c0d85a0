"""Tuning of LangChain programs: `compile(chain, metric=..., trainset=...)`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any  # Any: programs, examples and models are the user's

from adaseek.cogs.base import Cog
from adaseek.errors import ConfigurationError, require
from adaseek.events import Event
from adaseek.result import TuningResult
from adaseek.search.base import Constraint
from adaseek.tuner import Tuner
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from adaseek_langchain._apply import apply
from adaseek_langchain._convert import core_example, program_input
from adaseek_langchain._program import Translated, as_program
from adaseek_langchain._reports import model_reference
from adaseek_langchain._translate import translate
from adaseek_langchain._tuned import is_tuned
from adaseek_langchain._walk import walk
from adaseek_langchain.hook import AdaSeekHook

__all__ = ["AdaSeek", "compile"]

_SHAPE_EXAMPLES = 2


class AdaSeek:
    """Tunes a LangChain or LangGraph program for quality, cost and latency at once.

    Args:
        metric: `metric(example, output)` or `metric(example, output, trace)`; returns a bool, a
            number (higher is better) or `{"score": ..., "feedback": ...}`. `example` is the
            user's own, `output` what the program returned.
        auto: `light`, `medium` or `heavy`; `light` if `budget` is not given either.
        budget: workflow runs in all: validation and baseline runs are included.
        models: chat models to choose from, per step; the program's own are always there.
        objectives: some of `quality`, `cost`, `latency`; None: all that can be known.
        constraints: bounds to keep; None: quality at least the original's.
        prices: model name -> {"input": USD per 1M tokens, "output": ...} or
            {"per_second": USD per engine-second}.
        prompt_model: proposes instructions; None: the program's own model, False: nobody does.
        rewards: name -> reward function `({"messages": [...]}, answer) -> float` for `best_of`.
        run_dir: folder of the run; start again with the same one to resume. None: a new folder
            in the user's state directory.
        live_tools: True, or the names of tools that may really run while the program is
            translated; in the tuning runs themselves they always do.

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
        num_threads: int = 8,
        concurrency: Mapping[str, int] | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        journal: str | None = None,
        max_cost_usd: float | None = None,
        max_tokens: int | None = None,
        max_seconds: float | None = None,
        max_errors: int = 10,
        timeout_s: float | None = None,
        failure_score: float = 0.0,
        score_span: float = 1.0,
        sampler: BaseSampler | None = None,
        storage: BaseStorage | None = None,
        plugins: Sequence[object] = (),
        callbacks: Sequence[Callable[[Event], None]] = (),
        live_tools: bool | Collection[str] = False,
        verbose: bool = True,
    ) -> None:
        require(not isinstance(models, str), "models", models, "must be a list of models")
        self.prompt_model = prompt_model
        self.models = list(models)
        self.live_tools = live_tools
        self.tuner = Tuner(
            metric,
            budget=budget,
            auto=auto,
            models=self.models,
            objectives=objectives,
            constraints=constraints,
            cogs=cogs,
            prices=prices,
            rewards=dict(rewards or {}),
            seed=seed,
            run_dir=run_dir,
            journal=journal,
            num_threads=num_threads,
            concurrency=concurrency,
            max_cost_usd=max_cost_usd,
            max_tokens=max_tokens,
            max_seconds=max_seconds,
            max_errors=max_errors,
            timeout_s=timeout_s,
            failure_score=failure_score,
            score_span=score_span,
            sampler=sampler,
            storage=storage,
            plugins=plugins,
            listeners=tuple(callbacks),
            verbose=verbose,
        )

    def tune(
        self,
        program: Any,
        *,
        trainset: Sequence[Any],
        valset: Sequence[Any] | None = None,
        hook: AdaSeekHook | None = None,
    ) -> TuningResult:
        """Returns what was found for `program`; see `compile`."""
        return self._tuned(program, trainset, valset, hook)[1]

    def compile(
        self,
        program: Any,
        *,
        trainset: Sequence[Any],
        valset: Sequence[Any] | None = None,
        hook: AdaSeekHook | None = None,
    ) -> Any:
        """Returns a tuned copy of `program`, called like it; `program` is never changed.

        The copy's `detailed_results` is a `TuningResult`: Pareto set, other trade-offs, recipe
        and report. If nothing was better, the copy behaves as `program`.

        Args:
            program: a chain, an agent, a graph, or a function that calls chat models.
            trainset: examples: `{"inputs": ..., "outputs": ...}`, pairs (input, expected), or
                flat mappings.
            valset: examples for the final comparison; None: half of `trainset`.
            hook: a hook that has seen the program run: it knows steps that a run on marked
                values does not reach.

        Raises:
            AdaseekError: see `adaseek.tuner.Tuner.tune`.
        """
        translated, result = self._tuned(program, trainset, valset, hook)
        tuned = self._applied(translated, result)
        # Past pydantic: LangChain's classes let no undeclared attribute be set.
        object.__setattr__(tuned, "detailed_results", result)
        return tuned

    def _applied(self, translated: Translated, result: TuningResult) -> Any:
        settings: dict[str, Any] = {
            "models": {model_reference(m).key: m for m in self.models if not isinstance(m, str)},
            "rewards": self.tuner.rewards,
            "workflow": translated.workflow,
        }
        try:
            return apply(translated.program, result.recipe, **settings)
        except ConfigurationError as error:
            # Paid for, so not thrown away: a hook reaches what a copy does not hold.
            warnings.warn(
                f"The tuned program carries its recipe by a hook, since {error}",
                RuntimeWarning,
                stacklevel=3,
            )
            hook = AdaSeekHook(result.recipe, **settings)
            return translated.program.with_config(callbacks=[hook])

    def _tuned(
        self,
        program: Any,
        trainset: Sequence[Any],
        valset: Sequence[Any] | None,
        hook: AdaSeekHook | None,
    ) -> tuple[Translated, TuningResult]:
        translated = self._translated(program, trainset, hook)
        tuner = self.tuner.replaced(proposer=self._proposer(translated.program))
        return translated, tuner.tune(translated, trainset=trainset, valset=valset)

    def _translated(
        self, program: Any, trainset: Sequence[Any], hook: AdaSeekHook | None
    ) -> Translated:
        require(bool(trainset), "trainset", trainset, "must hold examples")
        try:
            runnable = as_program(program)
        except TypeError as error:
            raise ConfigurationError(
                f"`program` is a {type(program).__name__}, which LangChain cannot run: {error}"
            ) from None
        if isinstance(runnable, BaseChatModel):
            raise ConfigurationError(
                f"`program` is a bare {type(runnable).__name__}: its step would be named after the "
                "line that calls it, which differs from call to call. Tune a chain that holds it, "
                "such as `prompt | model` or `RunnablePassthrough() | model`."
            )
        if any(is_tuned(found.model) for found in walk(runnable).models):
            raise ConfigurationError(
                "`program` carries a recipe already: apply() or compile() made it. Tune the "
                "program that it was made from."
            )
        few = [core_example(runnable, raw) for raw in trainset[:_SHAPE_EXAMPLES]]
        shapes = [program_input(runnable, example) for example in few]
        workflow = translate(runnable, shapes, hook=hook, live_tools=self.live_tools)
        return Translated(runnable, workflow)

    def _proposer(self, program: Runnable[Any, Any]) -> Any:
        if self.prompt_model is False:
            return None
        if self.prompt_model is not None:
            return self.prompt_model
        return next((found.model for found in walk(program).models), None)


def compile(  # noqa: A001  (the public name, as in other optimizers)
    program: Any,
    *,
    metric: Callable[..., Any],
    trainset: Sequence[Any],
    valset: Sequence[Any] | None = None,
    hook: AdaSeekHook | None = None,
    **settings: Any,
) -> Any:
    """Returns a tuned copy of `program`; `settings` are the arguments of `AdaSeek`.

    Raises:
        AdaseekError: see `adaseek.tuner.Tuner.tune`.
    """
    optimizer = AdaSeek(metric, **settings)
    return optimizer.compile(program, trainset=trainset, valset=valset, hook=hook)
