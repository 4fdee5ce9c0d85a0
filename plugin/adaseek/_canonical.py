"""One JSON form per value, so that equal content has equal fingerprints."""

from __future__ import annotations

import hashlib
import json
from typing import Any  # JSON values have no narrower type

__all__ = ["canonical_json", "fingerprint", "text_fingerprint"]


def canonical_json(value: Any) -> str:
    """Returns `value` as JSON with sorted keys and no spaces.

    Raises:
        TypeError: if `value` holds something that JSON has no form for.
        ValueError: if `value` holds NaN or an infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def fingerprint(value: Any, *, length: int = 16) -> str:
    """Returns the first `length` hex digits of the SHA-256 of the canonical JSON of `value`."""
    return text_fingerprint(canonical_json(value), length=length)


def text_fingerprint(text: str, *, length: int = 16) -> str:
    """Returns the fingerprint of the value whose canonical JSON is `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]
