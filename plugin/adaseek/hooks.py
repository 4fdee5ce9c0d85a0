"""The extension contract: every hook that a plugin may implement, one docstring each.

An adapter teaches AdaSeek a framework (`adaseek_translate`, `adaseek_apply`, `adaseek_run`);
other plugins add cogs, models, prices or listen to events. An implementation may name fewer
arguments than its specification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any  # Any: the user's program is the framework's own object

import pluggy

if TYPE_CHECKING:
    from adaseek.cogs.base import Cog, Completion
    from adaseek.evaluation.base import RunContext
    from adaseek.events import Event
    from adaseek.recipe import Recipe
    from adaseek.workflow import Edge, Example, ModelRef, Trace, Usage, Workflow

__all__ = ["PROJECT", "Specs", "hookimpl"]

PROJECT = "adaseek"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Specs:
    """The hook specifications; see each docstring."""

    @hookspec(firstresult=True)
    def adaseek_translate(self, obj: Any, options: Mapping[str, Any]) -> Workflow | None:
        """Returns `obj` as a workflow, or None if it is not an object of this framework.

        Translating the same object twice gives equal step ids and fingerprints.
        """

    @hookspec(firstresult=True)
    def adaseek_apply(
        self,
        obj: Any,
        workflow: Workflow,
        recipe: Recipe,
        models: Mapping[str, Any],
        rewards: Mapping[str, Callable[..., Any]],
    ) -> Any:
        """Returns a copy of `obj` that behaves as `recipe` says; never changes `obj`.

        `models` maps model keys to the framework's model objects; a model that it lacks is built
        from the reference. `rewards` maps names to the user's reward functions, for ensembles
        that take the best of their answers; the caller has checked that none is missing. Applying
        an empty recipe sends byte-identical requests.

        Raises:
            RecipeMismatchError: if the recipe was made for another program.
        """

    @hookspec(firstresult=True)
    def adaseek_run(
        self, obj: Any, workflow: Workflow, recipe: Recipe, example: Example, context: RunContext
    ) -> Trace | None:
        """Runs `obj` under `recipe` on `example` and returns what happened.

        A failure of the model, the program or the endpoint is returned in the trace, never
        raised; only KeyboardInterrupt and SystemExit pass. Called from many threads at once.
        """

    @hookspec(firstresult=True)
    def adaseek_probe(self, obj: Any, workflow: Workflow) -> frozenset[Edge] | None:
        """Returns the data-flow edges found without calling a model or a real tool."""

    @hookspec(firstresult=True)
    def adaseek_example(self, obj: Any, raw: Any) -> Example | None:
        """Returns the framework's own example object `raw` as an `Example`.

        `raw` may also be an `Example` that was read from a file and so has no framework object:
        return it with one, or None if the framework has no example objects.
        """

    @hookspec(firstresult=True)
    def adaseek_metric(self, obj: Any, metric: Callable[..., Any]) -> Callable[..., Any] | None:
        """Returns the user's `metric` as a `Metric` over core types (`Example`, `Trace`)."""

    @hookspec(firstresult=True)
    def adaseek_model(self, model: Any) -> ModelRef | None:
        """Returns the reference of a framework's model object."""

    @hookspec(firstresult=True)
    def adaseek_models(self, obj: Any) -> Sequence[Any] | None:
        """Returns the framework's model objects that the unchanged `obj` calls, each once."""

    @hookspec(firstresult=True)
    def adaseek_complete(
        self, model: Any, prompt: str, seed: int, max_tokens: int
    ) -> Completion | None:
        """Asks a framework's model object the tuner's own `prompt` and returns the answer.

        Raises:
            EndpointError: if the endpoint does not answer.
        """

    @hookspec(firstresult=True)
    def adaseek_check_model(self, model: Any) -> str | None:
        """Returns why the model cannot be called now (endpoint down, not served), or None."""

    @hookspec
    def adaseek_cogs(self, add: Callable[[Cog], None]) -> None:
        """Calls `add` with each cog that this plugin brings."""

    @hookspec(firstresult=True)
    def adaseek_price(self, model: ModelRef, usage: Usage, duration_s: float) -> float | None:
        """Returns the price of one call in USD, or None if this plugin does not know it."""

    @hookspec
    def adaseek_event(self, event: Event) -> None:
        """Is told what happens during a run; for progress displays and exporters."""
