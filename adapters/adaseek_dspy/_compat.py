"""Every name that lies deeper in DSPy than its public module, for the supported versions.

Supported: DSPy 3.2 to 3.4. What differs between them: where errors live (before 3.3 LiteLLM's own
exceptions reach the caller), whether interpreters report to callbacks (3.4), and which objects a
native tool call consists of. Engines, below the response cache, exist from 3.4 on; without them no
hint is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any  # Any: DSPy is untyped; its objects cross this border unseen

from adaseek.workflow import ErrorKind, Usage
from dspy.clients.base_lm import BaseLM
from dspy.primitives.base_module import BaseModule
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback
from dspy.utils.exceptions import AdapterParseError
from dspy.utils.usage_tracker import UsageTracker
from pydantic import BaseModel

try:
    from dspy.clients.engines import litellm_engine, lm15_engine
except ImportError:  # before 3.4
    ENGINES: tuple[type, ...] = ()
    """What makes typed requests, `complete(request)` and `stream(request)`."""
    LEGACY_ENGINES: tuple[type, ...] = ()
    """What makes requests that are a dict, `complete_legacy(lm, request)`."""
else:
    ENGINES = (lm15_engine.LM15Engine, lm15_engine.AsyncLM15Engine)
    LEGACY_ENGINES = (litellm_engine.LiteLLMEngine, litellm_engine.AsyncLiteLLMEngine)

__all__ = [
    "ENGINES",
    "LEGACY_ENGINES",
    "BaseCallback",
    "BaseLM",
    "BaseModule",
    "UsageTracker",
    "active_call_id",
    "error_kind",
    "plain",
    "restored_outputs",
    "usage_of",
]

_MODEL_ERRORS = ("AdapterParseError", "ContextWindowExceededError", "ContextLengthError")
"""The request was fine, but the model could not give a usable answer to it."""

_ENDPOINT_PACKAGES = frozenset({"litellm", "openai", "httpx", "httpcore"})
_ENDPOINT_TYPES = (ConnectionError, TimeoutError)


def active_call_id() -> str | None:
    """Returns the id of the innermost DSPy call of this context, None outside of any."""
    call_id: str | None = ACTIVE_CALL_ID.get()
    return call_id


def error_kind(error: BaseException) -> ErrorKind:
    """Returns what failed: the model's answer, the endpoint, or else the user's program.

    User code may wrap an error in one of its own, so causes and contexts are looked at as well.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        kind = _kind_of(current)
        if kind is not None:
            return kind
        current = current.__cause__ or current.__context__
    return "model" if _raised_by_agent(error) else "program"


def _raised_by_agent(error: BaseException) -> bool:
    """Returns whether a DSPy agent or adapter gave up on the model's answers.

    They raise a plain ValueError, for instance when no tool call of the model was usable.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    # `dspy.predict.predict` itself only complains about how it is called.
    is_agent = module.startswith(("dspy.predict.", "dspy.adapters."))
    return isinstance(error, ValueError) and is_agent and module != "dspy.predict.predict"


def _kind_of(error: BaseException) -> ErrorKind | None:
    if isinstance(error, AdapterParseError):
        return "model"
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & set(_MODEL_ERRORS):
        return "model"
    if isinstance(error, _ENDPOINT_TYPES):
        return "endpoint"
    if {cls.__module__.partition(".")[0] for cls in type(error).__mro__} & _ENDPOINT_PACKAGES:
        return "endpoint"
    return "endpoint" if "LMError" in names or "LM15Error" in names else None


def plain(value: Any) -> Any:
    """Returns `value` with every pydantic or SDK object in it turned into dicts and lists."""
    if isinstance(value, BaseModel):
        return {key: plain(item) for key, item in dict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class _Attributes(dict[str, Any]):
    """A dict whose items are attributes too, as adapters expect of a tool call."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def model_dump(self, **_: Any) -> dict[str, Any]:
        dumped: dict[str, Any] = plain(self)
        return dumped


def restored_outputs(value: Any) -> Any:
    """Returns what `plain` made of a model's outputs as objects that DSPy's adapters can read."""
    if isinstance(value, Mapping):
        return _Attributes({key: restored_outputs(item) for key, item in value.items()})
    if isinstance(value, list):
        return [restored_outputs(item) for item in value]
    return value


def usage_of(entry: Mapping[str, Any], *, requests: int) -> Usage:
    """Returns a provider's usage report in our terms; what it does not say counts as zero."""
    details = plain(entry.get("prompt_tokens_details")) or {}
    return Usage(
        input_tokens=_count(entry.get("prompt_tokens") or entry.get("input_tokens")),
        output_tokens=_count(entry.get("completion_tokens") or entry.get("output_tokens")),
        cached_tokens=_count(details.get("cached_tokens")),
        requests=requests,
        cost_usd=None,
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
