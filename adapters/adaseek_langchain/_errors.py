"""What failed: the model's answer, the endpoint, or the user's program."""

from __future__ import annotations

from adaseek.workflow import ErrorKind
from langchain_core.exceptions import OutputParserException

__all__ = ["error_kind"]

_MODEL_ERRORS = frozenset(
    {
        "ContextOverflowError",
        "GraphRecursionError",
        "LengthFinishReasonError",
        "ModelCallLimitExceededError",
        "MultipleStructuredOutputsError",
        "OutputParserException",
        "StructuredOutputError",
        "StructuredOutputValidationError",
        "ToolCallLimitExceededError",
    }
)
"""The request was fine, but the model's answers led nowhere; by name, since versions move them."""

_ENDPOINT_PACKAGES = frozenset(
    {"openai", "anthropic", "httpx", "httpcore", "aiohttp", "requests", "botocore", "grpc"}
)


def error_kind(error: BaseException) -> ErrorKind:
    """Returns what failed; causes and contexts are looked at too, since user code may wrap."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        kind = _kind_of(current)
        if kind is not None:
            return kind
        current = current.__cause__ or current.__context__
    return "program"


def _kind_of(error: BaseException) -> ErrorKind | None:
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, OutputParserException) or names & _MODEL_ERRORS:
        return "model"
    if isinstance(error, ConnectionError | TimeoutError):
        return "endpoint"
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return "endpoint" if packages & _ENDPOINT_PACKAGES else None
