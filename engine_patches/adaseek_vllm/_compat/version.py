"""Which vLLM is here, and whether AdaSeek's patches know it. Imports nothing of vLLM."""

from __future__ import annotations

from adaseek_vllm.serve import ServeError, VllmWheel, find_wheel

__all__ = ["SUPPORTED", "unsupported_reason"]

SUPPORTED = ("0.32",)
"""The minor versions of vLLM that the patches were run on."""


def unsupported_reason(wheel: VllmWheel | None = None) -> str | None:
    """Returns why AdaSeek's features cannot run here, or None if they can.

    Args:
        wheel: the installed one; None looks for it.
    """
    try:
        wheel = wheel or find_wheel()
    except ServeError as error:
        return str(error)
    if ".".join(wheel.version.split(".")[:2]) in SUPPORTED:
        return None
    return (
        f"{wheel.distribution} {wheel.version} is installed, but AdaSeek's engine features know "
        f"vLLM {', '.join(SUPPORTED)}; install 'vllm=={SUPPORTED[-1]}.*', or leave the flag out."
    )
