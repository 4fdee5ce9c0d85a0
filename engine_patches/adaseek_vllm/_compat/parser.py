"""Adds AdaSeek's flags to vLLM's command lines.

Patches two functions of `vllm.engine.arg_utils.EngineArgs` (vLLM 0.32): `add_cli_args`, which
every parser of vLLM's goes through, and `from_cli_args`, which reads what was parsed. Both call
the original. test_flags.py fails when either moves.
"""

from __future__ import annotations

import argparse
import functools
import logging
from typing import Any

from adaseek_vllm._compat.version import unsupported_reason
from adaseek_vllm.flags import add_flags, changed_engine_args, requested_features

__all__ = ["install"]

_logger = logging.getLogger(__name__)
_MARK = "_adaseek_original"


def install() -> None:
    """Patches `EngineArgs`; does nothing if it is patched already."""
    from vllm.engine.arg_utils import EngineArgs

    if hasattr(EngineArgs.add_cli_args, _MARK):
        return
    reading = _reading(EngineArgs.from_cli_args.__func__)
    EngineArgs.add_cli_args = staticmethod(_adding(EngineArgs.add_cli_args))
    # A type checker knows a class method only as it is called, without its class.
    EngineArgs.from_cli_args = classmethod(reading)  # pyright: ignore[reportAttributeAccessIssue]


# The wrapped functions take and return vLLM's own types, which differ between its versions.
def _adding(original: Any) -> Any:
    @functools.wraps(original)
    def add_cli_args(parser: Any) -> Any:
        return add_flags(original(parser))

    setattr(add_cli_args, _MARK, original)
    return add_cli_args


def _reading(original: Any) -> Any:
    @functools.wraps(original)
    def from_cli_args(cls: Any, args: argparse.Namespace) -> Any:
        requested = requested_features(vars(args))
        if requested and (reason := unsupported_reason()) is not None:
            flags = ", ".join(f"--{key.replace('_', '-')}" for key in requested)
            _logger.warning("%s ignored, vLLM runs as it is: %s", flags, reason)
            requested = {}
        changes = changed_engine_args(requested, vars(args))
        return original(cls, argparse.Namespace(**{**vars(args), **changes}))

    return from_cli_args
