"""Discovery of plugins, with real distributions in a temporary folder."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from adaseek.errors import PluginError
from adaseek.hooks import hookimpl
from adaseek.plugins import ADAPTER_GROUP, BLOCK_VARIABLE, PLUGIN_GROUP, load_plugins

GOOD = """
from adaseek.hooks import hookimpl

@hookimpl
def adaseek_price(model):
    return 0.5
"""
UNKNOWN_HOOK = """
from adaseek.hooks import hookimpl

@hookimpl
def adaseek_price(model):
    return 9.0

@hookimpl
def adaseek_prise(model):
    return 9.0
"""
UNKNOWN_ARGUMENT = """
from adaseek.hooks import hookimpl

@hookimpl
def adaseek_cogs(add):
    add("a cog of a broken plugin")

@hookimpl
def adaseek_price(modell):
    return 9.0
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, where `install` puts distributions."""
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def install(site: Path, module: str, source: str, *, group: str, name: str) -> None:
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")


def run(site: Path, code: str) -> list[str]:
    """Returns the printed words of `code`, run in a fresh interpreter that sees `site`."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_no_adapter_is_imported_before_its_framework(site: Path) -> None:
    (site / "fakeframe.py").write_text("")
    install(site, "fakeframe_adapter", GOOD, group=ADAPTER_GROUP, name="fakeframe")
    ask = "import sys; from adaseek.plugins import load_plugins; load_plugins();"
    show = "print('fakeframe_adapter' in sys.modules, 'fakeframe' in sys.modules)"
    assert run(site, ask + show) == ["False", "False"]
    assert run(site, "import fakeframe;" + ask + show) == ["True", "True"]


def test_loading_plugins_imports_no_framework(site: Path) -> None:
    heavy = "{'dspy', 'langchain_core', 'torch', 'vllm', 'adaseek_dspy'}"
    code = (
        "import sys; from adaseek.plugins import load_plugins; load_plugins();"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    assert run(site, code) == ["[]"]


def test_plugins_without_a_framework_are_always_loaded(site: Path) -> None:
    install(site, "prices_plugin", GOOD, group=PLUGIN_GROUP, name="prices")
    manager = load_plugins()
    assert manager.hook.adaseek_price(model=None, usage=None, duration_s=0.0) == 0.5
    assert manager.has_plugin(f"{PLUGIN_GROUP}:prices")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_module_that_is_not_there", "a_module_that_is_not_there"),
        ("1 / 0", "ZeroDivisionError"),
        (UNKNOWN_HOOK, "adaseek_prise"),
        (UNKNOWN_ARGUMENT, "modell"),
    ],
)
def test_a_broken_plugin_is_named_and_skipped_and_the_others_work(
    site: Path, source: str, reason: str
) -> None:
    install(site, "broken_plugin", source, group=PLUGIN_GROUP, name="a_broken_one")
    install(site, "good_plugin", GOOD, group=PLUGIN_GROUP, name="the_good_one")
    with pytest.warns(RuntimeWarning) as warned:
        manager = load_plugins()
    (message,) = [str(warning.message) for warning in warned]
    assert "'a_broken_one'" in message
    assert "broken_plugin" in message
    assert reason in message
    assert f"{BLOCK_VARIABLE}=a_broken_one" in message
    assert not manager.has_plugin(f"{PLUGIN_GROUP}:a_broken_one")
    assert manager.hook.adaseek_price(model=None, usage=None, duration_s=0.0) == 0.5
    found: list[object] = []
    manager.hook.adaseek_cogs(add=found.append)
    assert found == []


def test_a_blocked_plugin_is_neither_imported_nor_reported(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "broken_plugin", "1 / 0", group=PLUGIN_GROUP, name="broken")
    install(site, "good_plugin", GOOD, group=PLUGIN_GROUP, name="good")
    monkeypatch.setenv(BLOCK_VARIABLE, "other, broken,good")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manager = load_plugins()
    assert manager.hook.adaseek_price(model=None, usage=None, duration_s=0.0) is None
    assert "good_plugin" not in sys.modules


class Prices:
    """A plugin as an object."""

    @hookimpl
    def adaseek_price(self, model: object) -> float:
        return 0.25


def test_managers_are_independent() -> None:
    with_prices, without = load_plugins([Prices()]), load_plugins()
    assert with_prices.hook.adaseek_price(model=None, usage=None, duration_s=0.0) == 0.25
    assert without.hook.adaseek_price(model=None, usage=None, duration_s=0.0) is None


def test_an_extra_plugin_that_is_installed_too_is_registered_once(site: Path) -> None:
    install(site, "good_plugin", GOOD, group=PLUGIN_GROUP, name="good")
    import good_plugin  # type: ignore[import-not-found]

    manager = load_plugins([good_plugin])
    assert list(manager.get_plugins()).count(good_plugin) == 1


def test_an_extra_plugin_that_is_wrong_is_an_error() -> None:
    class Wrong:
        @hookimpl
        def adaseek_prise(self) -> None:
            """A hook that does not exist."""

    with pytest.raises(PluginError, match="adaseek_prise"):
        load_plugins([Wrong()])
