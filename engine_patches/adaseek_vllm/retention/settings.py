"""The settings of KV retention, checked."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields

from adaseek_vllm.config import FeatureSettingsError, check_keys, read_mapping
from adaseek_vllm.retention.turn_order import ORDERS

__all__ = ["FLAG", "POLICIES", "RetentionSettings"]

FLAG = "--kv-retention"
POLICIES = ("auto", "soft", "pin", "host", "drop", "heuristic", "ttl", "infercept")
FALLBACKS = ("none", "prefix")
ESTIMATES = ("learned", "elapsed", "hint")

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*((?:[kmgt]i?b)?)", re.IGNORECASE)


@dataclass(frozen=True)
class RetentionSettings:
    """What a user can set; every default is safe for a server with many users.

    Args:
        policy: `auto` weighs expected waste; the others are simple rules to compare with.
        max_pinned_fraction: share of the GPU's KV blocks that paused sessions may hold together.
        tenant_fraction: share of the GPU's KV blocks that one tenant's paused sessions may hold,
            and of `host_bytes` that their copies may take; a tenant is a cache salt, and sessions
            without one are bound by the common limits only.
        max_ttl_s: longest time a session is held for its next turn, in seconds.
        min_pin_tokens: shorter contexts are never held.
        max_admission_delay_s: a waiting request never waits longer than this for held memory
            while others run; with nothing running it never waits.
        order: where a follow-up turn queues. `session`: where its session's first turn stood;
            `context`: as far towards that place as its context is still on the GPU, so that what
            is held does not wait, and what must be computed again does not go first; `fcfs`:
            vLLM's order.
        session_fallback: `prefix` treats a request whose prompt extends a recorded context as its
            next turn; `none` needs a session id.
        require_salt: only sessions with a cache salt are held.
        pin_aborted: hold sessions whose client went away too.
        markers: token ids that start a tool call, beside the formats of vLLM's tool parsers.
        max_intercepts: intercepts of /v1/intercepts kept at most; then paused ones are dropped.
        intercept_ttl_s: longest time an intercept may be paused, in seconds; its KV cache is let
            go earlier, as `max_ttl_s` says.
        estimate: how long a tool takes: `learned` per tool, `elapsed` as in InferCept, or `hint`,
            which believes clients.
        ttl_s: how long the policy `ttl` holds a session, in seconds.
        threshold_s: below this expected pause the policy `heuristic` holds a session, in seconds.
        max_sessions: records of paused sessions kept at most.
        host_bytes: host memory for copies of paused contexts, as a number of bytes or like "8GiB";
            0 copies nothing.
        inflight_fraction: share of the GPU's KV blocks that are copied to host memory at a time;
            as many may be on their way back ahead of their turns.
        prefetch: whether copies come back to the GPU before their turns, where that is expected to
            pay; only with `host_bytes`. Off until it was shown to pay.
        emulate_gbps: on the CPU backend, bandwidth of a pretended link to host memory, in 10^9
            bytes a second; None copies as fast as memory does.
        metrics: whether `/metrics` and the log show what retention does.
    """

    policy: str = "auto"
    max_pinned_fraction: float = 0.5
    tenant_fraction: float = 0.25
    max_ttl_s: float = 120.0
    min_pin_tokens: int = 32
    max_admission_delay_s: float = 2.0
    order: str = "context"
    session_fallback: str = "none"
    require_salt: bool = False
    pin_aborted: bool = False
    markers: tuple[int, ...] = ()
    max_intercepts: int = 1024
    intercept_ttl_s: float = 600.0
    estimate: str = "learned"
    ttl_s: float = 10.0
    threshold_s: float = 1.0
    max_sessions: int = 65536
    host_bytes: int = 0
    inflight_fraction: float = 0.125
    prefetch: bool = False
    emulate_gbps: float | None = None
    metrics: bool = True

    def __post_init__(self) -> None:
        _check_choice("policy", self.policy, POLICIES)
        _check_choice("order", self.order, ORDERS)
        _check_choice("session_fallback", self.session_fallback, FALLBACKS)
        _check_choice("estimate", self.estimate, ESTIMATES)
        _check_number("max_pinned_fraction", self.max_pinned_fraction, 0.0, 1.0)
        _check_number("tenant_fraction", self.tenant_fraction, 0.0, 1.0)
        _check_number("max_ttl_s", self.max_ttl_s, 0.0, 86400.0)
        _check_number("max_admission_delay_s", self.max_admission_delay_s, 0.0, 3600.0)
        _check_number("ttl_s", self.ttl_s, 0.0, 86400.0)
        _check_number("threshold_s", self.threshold_s, 0.0, 86400.0)
        _check_integer("min_pin_tokens", self.min_pin_tokens, 0)
        _check_number("intercept_ttl_s", self.intercept_ttl_s, 0.0, 86400.0)
        _check_integer("max_intercepts", self.max_intercepts, 1)
        _check_integer("max_sessions", self.max_sessions, 1)
        _check_integer("host_bytes", self.host_bytes, 0)
        _check_number("inflight_fraction", self.inflight_fraction, 0.0, 1.0)
        if self.emulate_gbps is not None:
            _check_number("emulate_gbps", self.emulate_gbps, 1e-6, 1e6)
        if self.policy == "host" and not self.host_bytes:
            raise _error("policy", self.policy, 'needs host memory: set `host_bytes`, e.g. "8GiB"')
        for name in ("require_salt", "pin_aborted", "prefetch", "metrics"):
            _check_type(name, getattr(self, name), bool, "true or false")
        for marker in self.markers:
            _check_integer("markers", marker, 0)

    @classmethod
    def read(cls, value: object) -> RetentionSettings:
        """Returns the settings that a flag's value, or `additional_config`, holds.

        Raises:
            FeatureSettingsError: an unknown key, or a value out of its range.
        """
        given = read_mapping(FLAG, value)
        check_keys(FLAG, given, known=[field.name for field in fields(cls)])
        if "markers" in given:
            given["markers"] = _marker_ids(given["markers"])
        if "host_bytes" in given:
            given["host_bytes"] = _num_bytes(given["host_bytes"])
        # Each value's type is checked in __post_init__; JSON text holds any type under any key.
        return cls(**given)  # type: ignore[arg-type]

    def as_mapping(self) -> dict[str, object]:
        """Returns the settings as JSON types; `read` takes them back."""
        return {**asdict(self), "markers": list(self.markers)}


def _marker_ids(value: object) -> tuple[object, ...]:
    if value == "auto":
        return ()
    if isinstance(value, (list, tuple)):
        return tuple(value)
    raise _error("markers", value, "must be 'auto' or a list of token ids")


def _num_bytes(value: object) -> object:
    """Returns the bytes that a text like "8GiB" or "500 MB" means; other values as they are."""
    if not isinstance(value, str):
        return value
    if (match := _SIZE.fullmatch(value.strip())) is None:
        raise _error("host_bytes", value, 'must be a number of bytes, or like "8GiB" or "500MB"')
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise _error(name, value, f"must be one of {', '.join(known)}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # type: ignore[operator]
        raise _error(name, value, f"must be a number from {low:g} to {high:g}")


def _check_integer(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise _error(name, value, f"must be a whole number >= {low}")


def _check_type(name: str, value: object, kind: type, words: str) -> None:
    if not isinstance(value, kind):
        raise _error(name, value, f"must be {words}")


def _error(name: str, value: object, rule: str) -> FeatureSettingsError:
    return FeatureSettingsError(f"{FLAG}: `{name}` is {value!r}, but {rule}.")
