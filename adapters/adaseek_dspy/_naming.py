"""Names of steps that no attribute of the program holds."""

from __future__ import annotations

from typing import Any  # Any: DSPy is untyped

__all__ = ["DIRECT_CALL", "dynamic_step", "is_dynamic"]

DIRECT_CALL = "<lm>"
"""Step of a language model that the program calls itself, without a predictor."""


def dynamic_step(signature: Any) -> str:
    """Returns the id of a predictor that is not part of the program's attributes."""
    name = getattr(signature, "__name__", "")
    is_inline = name in ("", "Signature", "StringSignature")
    return f"<{signature.signature if is_inline else name}>"


def is_dynamic(step: str) -> bool:
    """Returns whether `step` names a predictor that only exists at run time."""
    return step.startswith("<")
