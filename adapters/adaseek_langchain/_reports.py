"""Chat models as the core sees them: reference, usage report, and copies with other settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # Any: model classes and their reports are the providers'
from urllib.parse import urlsplit, urlunsplit

from adaseek.workflow import ModelRef, Usage
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import LLMResult

__all__ = [
    "copied",
    "is_from_cache",
    "message_of",
    "model_reference",
    "reference_from",
    "usage_of",
    "usage_of_message",
]

_NAMES = ("model_name", "model", "model_id", "deployment_name", "azure_deployment")
_ENDPOINTS = ("openai_api_base", "base_url", "azure_endpoint", "anthropic_api_url", "endpoint_url")


def model_reference(model: BaseChatModel) -> ModelRef:
    """Returns a model's name and base URL; never a key, a header or a password in the URL."""
    return reference_from({**vars(model), "_class": type(model).__name__})


def reference_from(settings: Mapping[str, Any]) -> ModelRef:
    """Returns the reference that a model's attributes, or its serialised form, tell."""
    name = _first(settings, _NAMES) or str(settings.get("_class", "chat model"))
    return ModelRef(name, _public(_first(settings, _ENDPOINTS)))


def _first(settings: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((str(settings[n]) for n in names if isinstance(settings.get(n), str)), "")


def _public(url: str) -> str:
    if not url:
        return ""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def copied(model: BaseChatModel, changes: Mapping[str, Any]) -> BaseChatModel:
    """Returns a copy of `model` with some attributes changed; it shares the connections."""
    return model.model_copy(update=dict(changes))


def message_of(result: LLMResult) -> BaseMessage | None:
    """Returns the first answer of a finished call, None if there is none."""
    generations = result.generations
    first = generations[0][0] if generations and generations[0] else None
    message: BaseMessage | None = getattr(first, "message", None)
    if message is None and first is not None:
        return AIMessage(first.text)  # a completion model's
    return message


def usage_of(report: Mapping[str, Any] | None, llm_output: Mapping[str, Any] | None) -> Usage:
    """Returns what the provider reported for one call; tokens that it does not report are 0.

    Args:
        report: what the answer carries, its `usage_metadata`.
        llm_output: what stands beside it in the result: where completion models report.
    """
    usage = _usage(report)
    older = (llm_output or {}).get("token_usage") or {}
    if usage.input_tokens or usage.output_tokens or not older:
        return usage
    return Usage(
        input_tokens=_count(older.get("prompt_tokens")),
        output_tokens=_count(older.get("completion_tokens")),
        requests=1,
        cost_usd=None,
    )


def usage_of_message(message: BaseMessage | None) -> Usage:
    """Returns the report that an answer carries; each answer of a request carries all of it."""
    return _usage(getattr(message, "usage_metadata", None))


def _usage(report: Mapping[str, Any] | None) -> Usage:
    known = report or {}
    details = known.get("input_token_details") or {}
    return Usage(
        input_tokens=_count(known.get("input_tokens")),
        output_tokens=_count(known.get("output_tokens")),
        cached_tokens=_count(details.get("cache_read")),
        requests=1,
        cost_usd=None,
    )


def is_from_cache(report: Mapping[str, Any] | None) -> bool:
    """Returns whether LangChain's response cache gave the answer (it then reports a cost of 0)."""
    return "total_cost" in (report or {})


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
