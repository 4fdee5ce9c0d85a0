"""What to do with one model call: leave it, send another request, or put several together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any  # Any: reward functions are the user's

from adaseek.errors import ConfigurationError, RecipeMismatchError, choices
from adaseek.recipe import Ensemble, Recipe, Setting, Subtask, member_id, owner_id
from adaseek.workflow import Step
from langchain_core.language_models import BaseChatModel

from adaseek_langchain._chat import ChatRequest, is_constrained, leading_text
from adaseek_langchain._flow import Ask, Flow, Results, ensemble_flow, split_flow, step_flow
from adaseek_langchain._menu import Models, call_arguments, fixed_form, tools_for
from adaseek_langchain._request import fills_in, rewritten
from adaseek_langchain._seam import Request
from adaseek_langchain._steps import Observation, lm_step
from adaseek_langchain._turns import with_results

__all__ = ["Plan", "Tuning", "check_settings", "plan"]

_SHOWN = 80
"""How much of a text an error shows."""


@dataclass(frozen=True)
class Tuning:
    """A recipe with everything that it takes to apply it.

    Attributes:
        models: where settings that name a model find it.
        rewards: name -> reward function, for `best_of` ensembles.
        step: returns what is known about a step of the program, or None.
        needs_all: whether a failed member fails its ensemble; in production the others answer.
    """

    recipe: Recipe
    models: Models
    rewards: Mapping[str, Any] = field(default_factory=dict)
    step: Callable[[str], Step | None] = lambda _: None
    needs_all: bool = True


@dataclass(frozen=True)
class Plan:
    """How a call is answered: by `ask` alone, or by a flow of several requests."""

    ask: Ask
    flow: Callable[[], Flow] | None = None


def plan(request: Request, tuning: Tuning) -> Plan | None:
    """Returns how to answer `request` under `tuning`; None: as the program made it.

    Raises:
        ConfigurationError: if the setting cannot be applied to this call.
    """
    setting = tuning.recipe.settings.get(request.step)
    if setting is None or replace(setting, engine=None).is_empty:
        return None  # what the engine is asked for is not said per request
    if setting.decompose is not None:
        return _split(request, setting, setting.decompose, tuning)
    return _answering(request, setting, tuning)


def _answering(request: Request, setting: Setting, tuning: Tuning, results: Results = ()) -> Plan:
    """Returns how the step answers, given the `results` of its subtasks."""
    if setting.ensemble is not None:
        return _ensemble(request, setting, setting.ensemble, tuning, results)
    ask = _ask(request, request.step, setting, tuning, results)
    if setting.reasoning in (None, "off"):
        return Plan(ask)
    return Plan(ask, lambda: step_flow(ask, setting.reasoning))


def _split(request: Request, setting: Setting, split: Sequence[Subtask], tuning: Tuning) -> Plan:
    own = replace(setting, decompose=None)
    # Instructions are the task; demos would show the answer to the whole of it.
    told = Setting(instructions=setting.instructions, model=setting.model)
    subtasks = [
        (
            _subtask(request, member_id(request.step, subtask.name), told, tuning),
            subtask.instructions,
        )
        for subtask in split
    ]

    def answering(results: Results) -> Flow:
        plan = _answering(request, own, tuning, results)
        return plan.flow() if plan.flow is not None else step_flow(plan.ask, None)

    # What cannot be applied is refused before the first subtask is asked.
    without_subtasks = _answering(request, own, tuning)
    return Plan(
        without_subtasks.ask,
        lambda: split_flow(subtasks, answering, needs_all=tuning.needs_all),
    )


def _subtask(request: Request, step: str, told: Setting, tuning: Tuning) -> Ask:
    own = tuning.recipe.setting(step)
    setting = told.merge(Setting(model=own.model, params=own.params))
    ask = _ask(request, step, setting, tuning)
    _check_free(step, "decompose", "a subtask", ask.model)
    return ask


def _ask(
    request: Request, step: str, setting: Setting, tuning: Tuning, results: Results = ()
) -> Ask:
    """Returns the request of `step` (or of one member) with everything but reasoning applied."""
    model = request.model
    if setting.model is not None:
        model = tuning.models.get(setting.model, model)
    if setting.reasoning not in (None, "off"):
        _check_free(step, "reasoning", "reasoning", model)
    kwargs = dict(tools_for(model, request.model, request.kwargs))
    if setting.params:
        kwargs |= call_arguments(setting.params, model)
    known = _fitting_step(request, tuning)
    chat = ChatRequest(request.messages, kwargs)
    asked = rewritten(chat, replace(setting, params=None), known)
    return Ask(step, model, with_results(asked, results))


def _fitting_step(request: Request, tuning: Tuning) -> Step | None:
    """Returns the step that `request` is a call of, as far as the recipe or the program tells.

    Raises:
        RecipeMismatchError: if it is not the step that the recipe was made for.
    """
    owner = owner_id(request.step)
    made_for = tuning.recipe.steps.get(owner)
    original = tuning.recipe.originals.get(owner, {})
    known = tuning.step(owner)
    if known is None and made_for is not None:
        known = _seen_step(request, original)
    if known is not None and made_for is not None and known.fingerprint != made_for:
        before = str(original.get("instructions", "(not kept)"))
        now = known.signature.instructions if known.signature is not None else ""
        raise RecipeMismatchError(
            "the recipe was made for a step with other instructions or tools: the instructions "
            f"were {before[:_SHOWN]!r} and are {now[:_SHOWN]!r}, the tools are "
            f"{choices(known.tools) or 'none'}"
        )
    return known


def _seen_step(request: Request, original: Mapping[str, Any]) -> Step:
    """Returns the step that the call itself shows, its prompt read by the `original` template."""
    template = str(original.get("instructions", ""))
    # A prompt without a system message has its task in what it asks.
    asked = [str(message.text) for message in request.messages]
    fits = any(fills_in(template, text) for text in (leading_text(request.messages), *asked))
    seen = Observation(owner_id(request.step), request.messages, request.kwargs)
    num_demos = int(original.get("num_demos", 0))
    return lm_step([seen], template if fits else None, num_demos)


def _check_free(step: str, name: str, what: str, model: BaseChatModel) -> None:
    """Raises if `model` itself fixes the form of its answers, so that they cannot be `what`."""
    fixed = fixed_form(model)
    if is_constrained(fixed):
        raise ConfigurationError(
            f"The recipe sets `{name}` at step `{owner_id(step)}`, but its chat model is made with "
            f"{choices(sorted(fixed))}, which leaves no room for {what}. Bind those arguments to "
            f"the call instead, or remove `{name}` from that step."
        )


def _ensemble(
    request: Request, setting: Setting, ensemble: Ensemble, tuning: Tuning, results: Results
) -> Plan:
    # The ensemble's own temperature replaces the step's.
    params = {k: v for k, v in (setting.params or {}).items() if k != "temperature"}
    base = replace(setting, ensemble=None, params=params or None)
    members = [
        _member(request, i, base, ensemble, tuning, results) for i in range(ensemble.num_members)
    ]
    judge_id = member_id(request.step, "judge")
    judge_setting = tuning.recipe.setting(judge_id)
    judge = None
    if ensemble.aggregate == "judge":
        asked = Request(request.step, request.model, (), {})
        judge = _ask(asked, judge_id, Setting(model=judge_setting.model), tuning)
        judge = replace(judge, request=ChatRequest((), _params(judge_setting, judge.model)))
    reward = _reward(request.step, ensemble, tuning)
    shown = ChatRequest(request.messages, request.kwargs)

    def flow() -> Flow:
        return ensemble_flow(
            shown,
            [step_flow(ask, reasoning) for ask, reasoning in members],
            aggregate=ensemble.aggregate,
            judge=judge,
            judge_setting=replace(judge_setting, params=None),
            reward=reward,
            needs_all=tuning.needs_all,
        )

    return Plan(members[0][0], flow)


def _member(
    request: Request,
    index: int,
    base: Setting,
    ensemble: Ensemble,
    tuning: Tuning,
    results: Results,
) -> tuple[Ask, Any]:
    step = member_id(request.step, index)
    setting = base.merge(tuning.recipe.setting(step))
    drawn = Setting(params={"temperature": ensemble.temperature})
    ask = _ask(request, step, drawn.merge(setting), tuning, results)
    return _as_rollout(ask, index), setting.reasoning


def _as_rollout(ask: Ask, index: int) -> Ask:
    """Returns `ask` such that neither a cache nor a seed makes two members the same draw."""
    kwargs = dict(ask.request.kwargs)
    model = ask.model
    if "seed" in type(model).model_fields:
        own = kwargs.get("seed", getattr(model, "seed", None)) or 0
        kwargs["seed"] = own + index
    elif model.cache is not False:
        # Without a seed a response cache would answer every member with the first one's reply.
        model = model.model_copy(update={"cache": False})
    return replace(ask, model=model, request=replace(ask.request, kwargs=kwargs))


def _params(setting: Setting, model: BaseChatModel) -> dict[str, Any]:
    return call_arguments(setting.params, model) if setting.params else {}


def _reward(step: str, ensemble: Ensemble, tuning: Tuning) -> Any:
    if ensemble.aggregate != "best_of":
        return None
    if ensemble.reward in tuning.rewards:
        return tuning.rewards[ensemble.reward]
    raise ConfigurationError(
        f"The ensemble at step `{step}` takes the answer that the reward function "
        f"'{ensemble.reward}' rates highest, but `rewards` has "
        f"{choices(tuning.rewards) or 'none'}. Pass it in `rewards`."
    )


def check_settings(tuning: Tuning) -> None:
    """Raises `ConfigurationError` if a setting cannot be applied, whatever the call."""
    for step, setting in tuning.recipe.settings.items():
        if setting.ensemble is not None:
            _reward(step, setting.ensemble, tuning)
