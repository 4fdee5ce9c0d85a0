"""The flags on vLLM's own parsers, what they change, and that off means off."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from adaseek_vllm import config, flags, plugin
from adaseek_vllm._compat import parser as vllm_parser
from adaseek_vllm._compat import version
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

FACTORY = "adaseek_vllm.scheduler.make_scheduler"


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM's parser with our flags; its own functions are put back afterwards."""
    for name in ("add_cli_args", "from_cli_args"):
        monkeypatch.setattr(EngineArgs, name, EngineArgs.__dict__[name])
    vllm_parser.install()
    yield


def parse(*argv: str) -> EngineArgs:
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return AsyncEngineArgs.from_cli_args(parser.parse_args(["--model", "m", *argv]))


@pytest.fixture(autouse=True)
def no_model_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_importing_flags_and_plugin_imports_nothing_of_vllm() -> None:
    code = (
        "import sys, adaseek_vllm.plugin, adaseek_vllm.flags as f\n"
        "f.with_features(kv_retention=True)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('vllm', 'torch')])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    ("argv", "environment", "wanted"),
    [
        ([], {}, False),
        (["serve", "m", "--port", "9"], {}, False),
        (["serve", "m", "--kv-retention"], {}, True),
        (["--kv_retention={}"], {}, True),
        (["--token-tree", "auto"], {}, True),
        (["--config", "server.yaml"], {}, True),
        (["--scheduler-cls", FACTORY], {}, True),
        ([f"--scheduler-cls={FACTORY}"], {}, True),
        (["--help"], {}, True),
        ([], {"ADASEEK_VLLM_FLAGS": "1"}, True),
        ([], {"ADASEEK_VLLM_FLAGS": "0"}, False),
    ],
)
def test_flags_are_added_only_when_they_may_be_used(
    argv: list[str], environment: dict[str, str], wanted: bool
) -> None:
    assert plugin.is_wanted(argv, environment) is wanted


def test_without_opt_in_registering_leaves_vllm_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "m"])
    monkeypatch.delenv(plugin.SWITCH, raising=False)
    before = dict(vars(EngineArgs))
    plugin.register()
    assert dict(vars(EngineArgs)) == before


def test_opt_in_on_the_command_line_patches_once(
    monkeypatch: pytest.MonkeyPatch, patched: None
) -> None:
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "m", "--kv-retention"])
    monkeypatch.setattr("adaseek_vllm._compat.routes.install", lambda: None)
    before = dict(vars(EngineArgs))
    plugin.register()
    assert dict(vars(EngineArgs)) == before


def test_without_the_flag_engine_arguments_are_stock(patched: None) -> None:
    with_flags_known = parse()
    assert with_flags_known.scheduler_cls is None
    assert with_flags_known.additional_config == EngineArgs(model="m").additional_config
    assert with_flags_known.scheduling_policy == EngineArgs(model="m").scheduling_policy
    assert parse("--kv-retention", "off").scheduler_cls is None


@pytest.mark.parametrize("argv", [["--kv-retention"], ["--kv-retention", "auto"]])
def test_bare_flag_takes_every_default(argv: list[str], patched: None) -> None:
    read = parse(*argv)
    assert read.scheduler_cls == FACTORY
    assert read.scheduling_policy == "priority"
    assert read.additional_config["kv_retention"]["policy"] == "auto"
    assert read.additional_config["kv_retention"]["max_pinned_fraction"] == 0.5


def test_json_of_the_flag_and_additional_config_in_any_order(patched: None) -> None:
    ours, theirs = ["--kv-retention", '{"policy": "pin"}'], ["--additional-config", '{"x": 1}']
    for argv in (ours + theirs, theirs + ours):
        read = parse(*argv).additional_config
        assert read["x"] == 1
        assert read["kv_retention"]["policy"] == "pin"


def test_fcfs_order_leaves_the_scheduling_policy(patched: None) -> None:
    assert parse("--kv-retention", '{"order": "fcfs"}').scheduling_policy == "fcfs"


def test_flags_that_contradict_are_refused_with_the_cure(patched: None) -> None:
    with pytest.raises(config.FeatureSettingsError, match="leave out --no-enable-prefix-caching"):
        parse("--kv-retention", "--no-enable-prefix-caching")
    with pytest.raises(config.FeatureSettingsError, match="`scheduler_cls` is 'mine'"):
        parse("--kv-retention", "--scheduler-cls", "mine")
    connector = '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}'
    for other in (["--kv-transfer-config", connector], ["--kv-offloading-size", "4"]):
        with pytest.raises(config.FeatureSettingsError, match="another KV connector"):
            parse("--kv-retention", *other)


def test_connector_is_set_and_what_it_may_do_follows_the_settings(patched: None) -> None:
    read = parse("--kv-retention").kv_transfer_config
    assert read == flags.METRICS_CONNECTOR
    assert parse("--kv-retention", '{"metrics": false}').kv_transfer_config is None
    text = '{"host_bytes": "2 MiB", "metrics": false, "emulate_gbps": 12}'
    host = parse("--kv-retention", text).kv_transfer_config
    assert host["kv_role"] == "kv_both"
    assert host["kv_load_failure_policy"] == "recompute"
    assert host["kv_connector_extra_config"] == {
        "cpu_bytes_to_use": 2 * 2**20,
        "inflight_fraction": 0.125,
        "tenant_fraction": 0.25,
        "emulate_gbps": 12,
    }


def test_trees_go_with_a_connector_that_only_reports() -> None:
    both = flags.with_features(model="m", kv_retention=True, token_tree=True)
    assert both["kv_transfer_config"] == flags.METRICS_CONNECTOR
    with pytest.raises(config.FeatureSettingsError, match="--token-tree does not go with"):
        flags.with_features(model="m", kv_retention={"host_bytes": "1GiB"}, token_tree=True)


def test_engine_arguments_in_python_need_no_patch() -> None:
    changed = flags.with_features(
        model="m", kv_retention={"policy": "ttl"}, additional_config={"x": 1}
    )
    assert "kv_retention" not in changed
    assert EngineArgs(**changed).scheduler_cls == FACTORY
    assert changed["additional_config"]["x"] == 1
    assert changed["additional_config"]["kv_retention"]["policy"] == "ttl"
    assert flags.with_features(model="m", kv_retention=False) == {"model": "m"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nonsense", "must be `auto` or a JSON object"),
        ("[1]", "must be `auto` or a JSON object"),
        (3, "must be `auto` or a JSON object"),
        ({"polcy": "pin"}, "no setting 'polcy'; it has"),
        ({"policy": "keep"}, "must be one of auto, soft"),
        ({"max_pinned_fraction": 1.5}, "a number from 0 to 1"),
        ({"max_ttl_s": "long"}, "a number from 0"),
        ({"max_ttl_s": True}, "a number from 0"),
        ({"max_ttl_s": float("nan")}, "a number from 0"),
        ({"min_pin_tokens": -1}, "whole number"),
        ({"require_salt": 1}, "true or false"),
        ({"markers": "<tool_call>"}, "a list of token ids"),
        ({"host_bytes": "much"}, 'like "8GiB"'),
        ({"host_bytes": "-8GiB"}, 'like "8GiB"'),
        ({"host_bytes": -1}, "whole number"),
        ({"host_bytes": 1.5}, "whole number"),
        ({"policy": "host"}, "needs host memory: set `host_bytes`"),
        ({"emulate_gbps": 0}, "a number from"),
        ({"inflight_fraction": 2}, "a number from 0 to 1"),
        ({"metrics": "yes"}, "true or false"),
        ({"markers": ["<tool_call>"]}, "whole number"),
    ],
)
def test_bad_settings_are_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(config.FeatureSettingsError, match="--kv-retention") as raised:
        flags.with_features(model="m", kv_retention=value)
    assert message in str(raised.value)


def test_unknown_vllm_says_so_and_stays_unpatched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, patched: None
) -> None:
    monkeypatch.setattr(version, "SUPPORTED", ("9.9",))
    with caplog.at_level(logging.WARNING):
        read = parse("--kv-retention")
    assert read.scheduler_cls is None
    assert "--kv-retention ignored, vLLM runs as it is" in caplog.text
    assert "know vLLM 9.9" in caplog.text


def test_flags_are_shown_in_help(patched: None) -> None:
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    actions = {name: action for action in parser._actions for name in action.option_strings}
    assert isinstance(actions["--kv-retention"], argparse.Action)
    assert "least expected waste" in str(actions["--kv-retention"].help)
