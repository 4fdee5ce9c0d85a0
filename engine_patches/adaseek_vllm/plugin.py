"""The entry point that vLLM calls in each of its processes. Does nothing unless asked.

Importing this module imports nothing of vLLM: a failing import would only be logged by vLLM, and
the server would run without the features its user asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from adaseek_vllm import counters
from adaseek_vllm.flags import FEATURES, SCHEDULER

__all__ = ["is_wanted", "register"]

SWITCH = "ADASEEK_VLLM_FLAGS"
"""Environment variable: 1 adds the flags whatever the command line holds."""

# A file given by --config may hold the flags, and --help shows them.
_REVEALING = ("--config", "--help", "-h")


def is_wanted(argv: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Returns whether this process's command line, or the environment, may ask for a feature."""
    names = (*_REVEALING, *(feature.flag for feature in FEATURES))
    given = {argument.split("=", 1)[0].replace("_", "-") for argument in argv}
    # The long form: --scheduler-cls and --additional-config.
    is_long = any(SCHEDULER in argument for argument in argv)
    return environment.get(SWITCH) == "1" or is_long or any(name in given for name in names)


def register() -> None:
    """Adds the features' flags and routes to vLLM if they are wanted; may be called again.

    Routes are added by a server whose flags then really ask for them.
    """
    if not is_wanted(sys.argv[1:], os.environ):
        return
    counters.remove_at_exit(os.environ)
    from adaseek_vllm._compat import parser, routes
    from adaseek_vllm._compat.version import unsupported_reason

    parser.install()
    if unsupported_reason() is None:
        routes.install()
