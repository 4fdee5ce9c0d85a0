"""The command, environment and refusals of `python -m adaseek_vllm.serve`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from adaseek_vllm import serve

GPU = serve.VllmWheel("vllm", "0.32.1")
CPU = serve.VllmWheel("vllm-cpu", "0.32.0")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Distribution -> version of what seems to be installed."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    return versions


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """(command, environment) of each replacement of this process, which does not happen."""
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda _path, args, env: calls.append((args, env)))
    return calls


def test_importing_the_module_imports_nothing_of_vllm() -> None:
    code = "import sys, adaseek_vllm.serve; print([m for m in sys.modules if m[:4] == 'vllm'])"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip() == "[]"


def test_gpu_wheel_is_served_by_its_own_cli(installed: dict[str, str]) -> None:
    installed["vllm"] = "0.32.1"
    command = serve.serve_command("org/model", ["--port", "9"], python="py")
    assert command == [
        *("py", "-m", "vllm.entrypoints.cli.main", "serve", "org/model"),
        *("--host", "127.0.0.1", "--port", "9"),
    ]


def test_cpu_wheel_is_served_by_the_server_module(installed: dict[str, str]) -> None:
    installed["vllm-cpu"] = "0.32.0"
    command = serve.serve_command("org/model", ["--kv-retention"], python="py")
    assert command == [
        *("py", "-W", "ignore::DeprecationWarning:__main__"),
        *("-m", "vllm.entrypoints.openai.api_server", "--model", "org/model"),
        *("--host", "127.0.0.1", "--kv-retention"),
    ]


@pytest.mark.parametrize("flags", [["--host", "0.0.0.0"], ["--host=0.0.0.0"]])
def test_given_host_is_the_only_host(flags: list[str]) -> None:
    command = serve.serve_command("m", flags, python="py", wheel=GPU)
    assert command[-len(flags) :] == flags
    assert "127.0.0.1" not in command


def test_cores_are_all_bound_on_a_small_machine() -> None:
    defaults = serve.cpu_defaults([], cores=[1, 0], free_bytes=24 << 30)
    assert defaults["VLLM_CPU_OMP_THREADS_BIND"] == "0,1"


@pytest.mark.parametrize(
    ("flags", "num_cores"), [(["-tp", "2"], 2), (["--tensor-parallel-size=2"], 2), ([], 9)]
)
def test_cores_are_left_to_vllm_for_several_workers_and_large_machines(
    flags: list[str], num_cores: int
) -> None:
    defaults = serve.cpu_defaults(flags, cores=range(num_cores), free_bytes=24 << 30)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in defaults


@pytest.mark.parametrize(("free_gib", "space"), [(1, "1"), (8, "2"), (24, "4"), (512, "4")])
def test_cache_takes_a_quarter_of_the_memory_at_most_four_gib(free_gib: int, space: str) -> None:
    defaults = serve.cpu_defaults([], cores=[0], free_bytes=free_gib << 30)
    assert defaults["VLLM_CPU_KVCACHE_SPACE"] == space


def test_environment_of_the_user_wins(
    installed: dict[str, str],
    replaced: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed["vllm-cpu"] = "0.32.0"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    serve.main(["m"])
    ((command, environment),) = replaced
    assert command == serve.serve_command("m", [], wheel=CPU)
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert environment["DO_NOT_TRACK"] == "1"


@pytest.mark.parametrize("flag", ["--token-tree", '--token-tree={"num_nodes": 3}'])
def test_counters_of_trees_get_a_directory_of_their_own(
    installed: dict[str, str],
    replaced: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
) -> None:
    installed["vllm-cpu"] = "0.32.0"
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    serve.main(["m", flag])
    serve.main(["m"])
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "mine")
    serve.main(["m", flag])
    directories = [environment.get("PROMETHEUS_MULTIPROC_DIR") for _, environment in replaced]
    assert directories[1:] == [None, "mine"]
    assert directories[0] is not None
    assert list(Path(directories[0]).iterdir()) == []
    Path(directories[0]).rmdir()


def test_gpu_wheel_keeps_the_environment(
    installed: dict[str, str], replaced: list[tuple[list[str], dict[str, str]]]
) -> None:
    installed["vllm"] = "0.32.1"
    serve.main(["m"])
    assert replaced[0][1] == dict(os.environ)


def test_missing_vllm_is_one_line_with_the_cure(
    installed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert installed == {}
    assert serve.main(["m"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install 'adaseek[vllm]'" in error
    assert "pip install 'adaseek[vllm-cpu]'" in error


@pytest.mark.parametrize(("argv", "status"), [([], 2), (["--port", "9"], 2), (["--help"], 0)])
def test_without_a_model_the_usage_is_shown(
    argv: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(argv) == status
    assert "MODEL" in "".join(capsys.readouterr())


def test_cuda_companion_of_cpu_torch_stops_the_start(
    installed: dict[str, str],
    replaced: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed |= {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    monkeypatch.setattr(serve, "_can_import", lambda _name, _python: False)
    assert serve.main(["m"]) == 1
    assert replaced == []
    error = capsys.readouterr().err
    assert error.startswith("torchvision cannot be imported")
    assert "pip uninstall -y torchvision torchaudio torchcodec" in error


@pytest.mark.parametrize(
    ("torch", "torchvision", "can_import"),
    [
        ("2.13.0+cpu", "0.28.0", True),  # built from source: works
        ("2.13.0+cpu", "0.28.0+cpu", False),  # never imported: the builds match
        ("2.13.0", "0.28.0", False),  # CUDA torch: none of our business
    ],
)
def test_matching_companions_are_accepted(
    installed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    torch: str,
    torchvision: str,
    can_import: bool,
) -> None:
    installed |= {"torch": torch, "torchvision": torchvision}
    monkeypatch.setattr(serve, "_can_import", lambda _name, _python: can_import)
    assert serve.broken_torch_companions() == []


def test_a_module_that_fails_on_import_is_noticed(installed: dict[str, str]) -> None:
    installed |= {"torch": "2.13.0+cpu", "torchcodec": "0.9.0"}
    assert serve.broken_torch_companions(python="false") == ["torchcodec"]
    assert serve.broken_torch_companions(python="true") == []


@pytest.mark.parametrize(("version", "warns"), [("0.32.4", False), ("0.33.0", True)])
def test_unknown_version_only_warns(
    installed: dict[str, str],
    replaced: list[tuple[list[str], dict[str, str]]],
    caplog: pytest.LogCaptureFixture,
    version: str,
    warns: bool,
) -> None:
    installed["vllm"] = version
    serve.main(["m"])
    assert len(replaced) == 1
    assert (f"vllm {version} is installed" in caplog.text) == warns
