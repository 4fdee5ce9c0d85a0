"""A recipe as middleware of an agent: LangChain's own way to change what its model is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any  # Any: requests and responses are the agent's

from adaseek.errors import ConfigurationError, choices
from adaseek.recipe import Recipe, Setting, check_recipe, owner_id
from adaseek.workflow import Step, Workflow
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig

from adaseek_langchain._compat import effective_config
from adaseek_langchain._interpose import carrier_of
from adaseek_langchain._keys import LEAF
from adaseek_langchain._menu import Models
from adaseek_langchain._plan import Tuning, check_settings, plan
from adaseek_langchain._route import Route
from adaseek_langchain._seam import Request, messages_of
from adaseek_langchain._tuned import tuned

__all__ = ["AdaSeekMiddleware"]

_MODEL_NODE = "model"
"""What `create_agent` calls the node that asks the model."""


class AdaSeekMiddleware(AgentMiddleware):
    """Applies a recipe to the model calls of one agent made by `create_agent`.

    Put it last, so that it is nearest to the model. Nothing is patched, and the agent's own model
    object is not changed. What cannot be applied raises at the call. Experimental.

    Args:
        recipe: the recipe; the same one works in `apply` and `AdaSeekHook`.
        step: the id of the agent's model step in the recipe. None: the one step of the recipe
            that is an agent's model.
        models: model key -> chat model, for settings that name a model.
        rewards: name -> reward function, for `best_of` ensembles.
        workflow: the translated program, if there is one: its steps tell the constant part of a
            prompt from what the program fills in.

    Raises:
        ConfigurationError: if `step` is needed or unknown, or a setting cannot be applied.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        step: str | None = None,
        models: Mapping[str, Any] | None = None,
        rewards: Mapping[str, Any] | None = None,
        workflow: Workflow | None = None,
    ) -> None:
        super().__init__()
        check_recipe(recipe)
        self.recipe = recipe
        self.step = _step_of(recipe, step)
        steps: Mapping[str, Step] = workflow.steps if workflow is not None else {}
        self._models = Models(models or {})
        self._tuning = Tuning(recipe, self._models, dict(rewards or {}), steps.get)
        check_settings(self._tuning)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        """Hands the request on, to a model that is asked as the recipe says."""
        return handler(self._changed(request))

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """As `wrap_model_call`."""
        return await handler(self._changed(request))

    def _changed(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        setting = self.recipe.setting(self.step)
        if setting.is_empty:
            return request
        model = request.model
        if setting.model is not None:
            # Before tools are bound: the class that is really called binds them in its own way.
            model = self._models.get(setting.model, model)
        return request.override(model=tuned(model, self._find(setting)))

    def _find(self, setting: Setting) -> Any:
        settings = {**self.recipe.settings, self.step: replace(setting, model=None)}
        tuning = replace(self._tuning, recipe=replace(self.recipe, settings=settings))

        def find(
            model: BaseChatModel,
            given: Any,
            config: RunnableConfig | None,
            kwargs: Mapping[str, Any],
        ) -> Route | None:
            messages = messages_of(given)
            if messages is None:
                return None
            effective = effective_config(config)
            carrier = carrier_of(model, effective)
            request = Request(self.step, model, messages, dict(kwargs))
            if carrier is not None:
                request = carrier.request(model, messages, kwargs, effective)
                request.step = self.step
            planned = plan(request, tuning)
            return Route(request, given, kwargs, planned, carrier, fails_open=False)

        return find


def _step_of(recipe: Recipe, step: str | None) -> str:
    """Returns the id of the agent's model step in `recipe`."""
    owners = list(dict.fromkeys(owner_id(s) for s in (*recipe.settings, *recipe.steps)))
    if step is not None:
        if owners and step not in owners:
            raise ConfigurationError(
                f"`step` is '{step}', but the recipe has {choices(owners)}. Name one of them."
            )
        return step
    found = [owner for owner in owners if _is_agent_model(owner)]
    if len(found) > 1:
        raise ConfigurationError(
            f"The recipe holds the models of several agents: {choices(found)}. "
            "Say which one this agent is, with `step`."
        )
    if owners and not found:
        raise ConfigurationError(
            f"The recipe holds no agent's model, only {choices(owners)}. Use apply() or "
            "AdaSeekHook for it, or name the step that this agent's model is, with `step`."
        )
    return found[0] if found else _MODEL_NODE


def _is_agent_model(step: str) -> bool:
    node, _, leaf = step.rpartition("/")
    return node.rpartition("/")[2] == _MODEL_NODE and LEAF in leaf
