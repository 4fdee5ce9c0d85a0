"""The other models that a recipe names: found or made once, and called with arguments they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # Any: model classes differ in their fields and arguments

from adaseek.errors import ConfigurationError, choices
from adaseek.workflow import ModelRef
from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from adaseek_langchain._reports import model_reference

__all__ = ["Models", "call_arguments", "fixed_form", "tools_for"]

_NAME_FIELDS = ("model_name", "model", "model_id")

_OF_THE_ENDPOINT = frozenset(
    {
        "client",
        "async_client",
        "root_client",
        "root_async_client",
        "http_client",
        "http_async_client",
        "default_headers",
        "default_query",
        "openai_organization",
        "openai_proxy",
        "profile",
    }
)
"""Fields of a model object that belong to the endpoint it was made for."""

_OPENAI_ARGUMENTS = frozenset(
    {
        *("temperature", "top_p", "max_tokens", "max_completion_tokens", "n", "stop", "seed"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("reasoning_effort", "verbosity", "response_format", "service_tier", "metadata", "user"),
        *("tools", "tool_choice", "parallel_tool_calls", "prompt_cache_key", "store", "timeout"),
        *("extra_body", "extra_headers", "extra_query", "stream_usage", "modalities", "audio"),
    }
)


class Models:
    """The chat model of each reference, one object per reference and origin (thread-safe)."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = dict(given)
        self._made: dict[tuple[str, int], tuple[Any, BaseChatModel]] = {}

    def get(self, reference: ModelRef, own: BaseChatModel) -> BaseChatModel:
        """Returns the model of `reference`; without a given one, `own` under another name.

        A key belongs to the endpoint that it was made for: it does not go along to another one.

        Raises:
            ConfigurationError: if it is not given and cannot be made from `own`.
        """
        found: BaseChatModel | None = self._given.get(reference.key)
        if found is not None:
            return found
        key = (reference.key, id(own))
        if key not in self._made:
            # `own` is kept beside its twin, or its id could come to mean another object. Two
            # threads may make the same twin at once: the first one stored is used by both.
            self._made.setdefault(key, (own, self._twin(reference, own)))
        return self._made[key][1]

    def _twin(self, reference: ModelRef, own: BaseChatModel) -> BaseChatModel:
        current = model_reference(own)
        if current == reference:
            return own
        name_field = next((n for n in _NAME_FIELDS if n in type(own).model_fields), None)
        if name_field is not None and current.endpoint == reference.endpoint:
            return _renamed(own, name_field, reference.id)
        if name_field is not None and "openai_api_base" in type(own).model_fields:
            return _moved(own, name_field, reference)
        raise ConfigurationError(
            f"The recipe asks for the model '{reference.key}', but it is not in `models` "
            f"({choices(self._given) or 'empty'}) and cannot be made from a "
            f"{type(own).__name__} of {current.key}. Pass the chat model in `models`."
        )


def _renamed(own: BaseChatModel, name_field: str, name: str) -> BaseChatModel:
    """Returns a copy under another name; it shares the connections of the original."""
    twin = own.model_copy(update={name_field: name, "profile": None})
    if "_serialized" in vars(twin):
        del twin._serialized  # remembered by the original, with the old name
    return twin


def _moved(own: BaseChatModel, name_field: str, reference: ModelRef) -> BaseChatModel:
    """Returns a new model of the same class and settings at another endpoint, without its key."""
    left_out = _OF_THE_ENDPOINT | {name_field, "openai_api_base", "model_kwargs"}
    kept: dict[str, Any] = {}
    for name in (own.model_fields_set - left_out) & type(own).model_fields.keys():
        value = getattr(own, name)
        if "api_key" not in name and not isinstance(value, SecretStr):
            kept[_argument(own, name)] = value
    kept["model_kwargs"] = {
        name: value
        for name, value in (getattr(own, "model_kwargs", None) or {}).items()
        if name not in ("extra_headers", "headers")
    }
    kept[_argument(own, name_field)] = reference.id
    if reference.endpoint:
        # Without an explicit key, the provider's key in the environment would go to this endpoint.
        kept |= {"base_url": reference.endpoint, "api_key": "none"}
    return type(own)(**kept)


def _argument(model: BaseChatModel, field: str) -> str:
    return type(model).model_fields[field].alias or field


def call_arguments(params: Mapping[str, Any], model: BaseChatModel) -> dict[str, Any]:
    """Returns sampling parameters as arguments of a call of `model`.

    The OpenAI client refuses parameters that only other servers know (`top_k`, `min_p` ...); they
    go into the body beside the constructor's own, which a call's `extra_body` would replace.
    """
    if "extra_body" not in type(model).model_fields:
        return dict(params)
    known = {name: value for name, value in params.items() if name in _OPENAI_ARGUMENTS}
    extra = {name: value for name, value in params.items() if name not in _OPENAI_ARGUMENTS}
    if extra or "extra_body" in known:
        own = getattr(model, "extra_body", None) or {}
        known["extra_body"] = {**own, **known.get("extra_body", {}), **extra}
    return known


def fixed_form(model: BaseChatModel) -> dict[str, Any]:
    """Returns what the model object itself fixes about the form of its answers, as arguments."""
    fixed = dict(getattr(model, "model_kwargs", None) or {})
    for name in ("stop", "stop_sequences", "response_format"):
        value = getattr(model, name, None)
        if value:
            fixed["stop" if name == "stop_sequences" else name] = value
    return fixed


def tools_for(
    model: BaseChatModel, own: BaseChatModel, kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Returns call arguments made for `own` as `model` takes them.

    Tools are bound again by the class that is really called; a response format has no form that
    all classes share.

    Raises:
        ConfigurationError: if they cannot be carried over.
    """
    if not kwargs or isinstance(model, _family(own)):
        return kwargs
    if kwargs.get("response_format") or kwargs.get("functions"):
        raise ConfigurationError(
            f"The recipe moves a step with structured output from {type(own).__name__} to "
            f"{type(model).__name__}, which does not take the same response format. Choose a model "
            f"of class {type(own).__name__} for it."
        )
    names = ("tools", "tool_choice", "parallel_tool_calls", "strict")
    rest = {name: value for name, value in kwargs.items() if name not in names}
    if not kwargs.get("tools"):
        return rest
    choice = kwargs.get("tool_choice")
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else choice
    extra = {"tool_choice": named} if named else {}
    bound: Any = model.bind_tools(kwargs["tools"], **extra)
    return {**rest, **bound.kwargs}


def _family(model: BaseChatModel) -> type[BaseChatModel]:
    """Returns the widest class that takes the same arguments as `model`."""
    chain = [kind for kind in type(model).__mro__ if issubclass(kind, BaseChatModel)]
    own = [kind for kind in chain if kind.__module__.partition(".")[0] != "langchain_core"]
    return own[-1] if own else type(model)
