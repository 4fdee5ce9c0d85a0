"""The HTTP routes are there when a flag asks for them, and vLLM is as it was when none does."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from adaseek_vllm import plugin
from adaseek_vllm._compat import engine_control, routes, version
from adaseek_vllm.retention.endpoint import RetentionEndpoints, configured
from fastapi import FastAPI
from vllm import plugins
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin, attach_endpoint_plugins
from vllm.v1.engine.core_client import AsyncMPClient

LONG = {"additional_config": {"kv_retention": {"policy": "pin"}}}


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM's loader with our plugin; its own function is put back afterwards."""
    monkeypatch.setattr(plugins, "load_endpoint_plugins", plugins.load_endpoint_plugins)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    routes.install()
    yield


def added_paths(**args: Any) -> set[str]:
    app = FastAPI()
    before = {getattr(route, "path", "") for route in app.routes}
    app.state.args = SimpleNamespace(**args)
    attach_endpoint_plugins(app, args.pop("tasks", ("generate",)))
    return {getattr(route, "path", "") for route in app.routes} - before


@pytest.mark.parametrize("args", [{"kv_retention": "auto"}, LONG, {"kv_retention": None, **LONG}])
def test_flag_alone_adds_the_routes(patched: None, args: dict[str, Any]) -> None:
    added = added_paths(**args)
    assert {"/v1/intercepts", "/v1/intercepts/{intercept_id}/resume", "/v1/kv_retention"} < added
    # vLLM's --api-key guards what is below /v1.
    assert all(path.startswith("/v1/") for path in added)


@pytest.mark.parametrize("args", [{}, {"kv_retention": None}, {"kv_retention": "off"}])
def test_off_means_no_route_even_where_vllm_is_patched(patched: None, args: dict[str, Any]) -> None:
    assert added_paths(**args) == set()


def test_unpatched_vllm_has_no_route() -> None:
    assert added_paths(kv_retention="auto") == set()


def test_servers_of_several_processes_have_no_route(
    patched: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert added_paths(kv_retention="auto", api_server_count=2) == set()
    assert "--api-server-count 2" in caplog.text


def test_servers_that_do_not_generate_have_no_route(patched: None) -> None:
    assert added_paths(kv_retention="auto", tasks=("embed",)) == set()


def test_unknown_vllm_has_no_route(patched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "SUPPORTED", ("9.9",))
    assert configured(SimpleNamespace(kv_retention="auto")) is None
    assert added_paths(kv_retention="auto") == set()


def test_other_endpoint_plugins_stay(patched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = SimpleNamespace(name="theirs", required_tasks=None)
    monkeypatch.setattr(plugins, "load_endpoint_plugins", lambda tasks=None: [theirs])
    routes.install()
    loaded = plugins.load_endpoint_plugins(("generate",))
    assert [one.name for one in loaded] == ["theirs", "adaseek"]
    routes.install()
    assert len(plugins.load_endpoint_plugins(("generate",))) == 2


def test_flags_unset_means_no_attribute_of_vllm_differs() -> None:
    code = (
        "import sys; sys.argv = ['vllm', 'serve', 'm']\n"
        "from vllm import plugins\n"
        "from vllm.engine.arg_utils import EngineArgs\n"
        "from vllm.v1.engine.core import EngineCore\n"
        "watched = (plugins, EngineArgs, EngineCore)\n"
        "before = [dict(vars(one)) for one in watched]\n"
        "import adaseek_vllm.plugin; adaseek_vllm.plugin.register()\n"
        "assert [dict(vars(one)) for one in watched] == before\n"
        "print([m for m in sys.modules if m.startswith('adaseek_vllm._compat')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]"


def test_unknown_vllm_stays_without_our_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "SUPPORTED", ("9.9",))
    monkeypatch.setattr("adaseek_vllm._compat.parser.install", lambda: None)
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "m", "--kv-retention"])
    before = plugins.load_endpoint_plugins
    plugin.register()
    assert plugins.load_endpoint_plugins is before


def test_plugin_is_what_vllm_takes() -> None:
    assert isinstance(RetentionEndpoints(), EndpointPlugin)
    assert list(inspect.signature(plugins.load_endpoint_plugins).parameters) == ["supported_tasks"]
    # vLLM looks the function up when it attaches routes, not when it is imported.
    assert "import load_endpoint_plugins" in inspect.getsource(attach_endpoint_plugins)


def test_method_of_the_engine_is_called_by_name() -> None:
    names = list(inspect.signature(AsyncMPClient.call_utility_all_async).parameters)
    assert names == ["self", "method", "args"]
    assert engine_control.METHOD == "adaseek_retention"
