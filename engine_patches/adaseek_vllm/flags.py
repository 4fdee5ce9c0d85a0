"""The flags that AdaSeek adds to vLLM, and what each changes in vLLM's engine arguments.

A feature is a package beside this file with a module `feature`, which is imported only when its
flag is set. Nothing here imports vLLM.

    from adaseek_vllm.flags import with_features
    llm = vllm.LLM(**with_features(model="org/model", kv_retention={"policy": "auto"}))
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from typing import Any, Protocol, cast

from adaseek_vllm.config import FeatureSettingsError, is_off

__all__ = [
    "FEATURES",
    "METRICS_CONNECTOR",
    "SCHEDULER",
    "Feature",
    "FeatureModule",
    "add_flags",
    "changed_engine_args",
    "installed_features",
    "requested_features",
    "with_features",
]

SCHEDULER = "adaseek_vllm.scheduler.make_scheduler"
"""What vLLM's `scheduler_cls` is set to when a feature needs its own scheduler."""

METRICS_CONNECTOR: dict[str, object] = {
    "kv_connector": "RetentionConnector",
    "kv_connector_module_path": "adaseek_vllm.retention.connector",
    "kv_role": "kv_producer",
    "kv_load_failure_policy": "recompute",
}
"""A KV connector for vLLM's `kv_transfer_config` that copies nothing: it only reports."""


class FeatureModule(Protocol):
    """What a feature's module offers."""

    def read_settings(self, value: object, /) -> dict[str, object]:
        """Returns the settings in JSON form, complete and checked.

        Raises:
            FeatureSettingsError: `value` is no valid setting.
        """
        ...

    def engine_args(
        self, settings: Mapping[str, object], current: Mapping[str, object], /
    ) -> dict[str, object]:
        """Returns the engine arguments that the feature changes, without `additional_config`.

        Args:
            settings: what `read_settings` returned.
            current: the engine arguments so far; a missing key has vLLM's default.

        Raises:
            FeatureSettingsError: the feature cannot work with `current`.
        """
        ...

    def scheduler_mixin(self) -> type | None:
        """Returns a class to put before vLLM's scheduler, or None. May import vLLM."""
        ...


@dataclass(frozen=True)
class Feature:
    """One flag of AdaSeek's, on vLLM's command line."""

    name: str
    package: str
    help: str

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def key(self) -> str:
        """The key of its settings in vLLM's `additional_config`, and its name in Python."""
        return self.name.replace("-", "_")

    @property
    def is_installed(self) -> bool:
        """Whether its code is there; its package is looked for first, which may be absent."""
        names = (self.package, f"{self.package}.feature")
        return all(util.find_spec(name) is not None for name in names)

    def load(self) -> FeatureModule:
        return cast(FeatureModule, importlib.import_module(f"{self.package}.feature"))


FEATURES = (
    Feature(
        "kv-retention",
        "adaseek_vllm.retention",
        "Keep, copy or drop the KV cache of sessions that wait for a tool, by least expected "
        "waste. `auto`, or a JSON object of settings.",
    ),
    Feature(
        "token-tree",
        "adaseek_vllm.token_tree",
        "Draft a tree of tokens and verify it in one step. `auto`, or a JSON object of settings.",
    ),
)


def installed_features() -> list[Feature]:
    """Returns the features whose code is there."""
    return [feature for feature in FEATURES if feature.is_installed]


def add_flags(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the flag of every installed feature to `parser`, and returns it."""
    group = parser.add_argument_group("AdaSeek")
    for feature in installed_features():
        group.add_argument(
            feature.flag,
            nargs="?",
            const="auto",
            default=None,
            metavar="JSON",
            help=feature.help,
        )
    return parser


def requested_features(values: Mapping[str, object]) -> dict[str, object]:
    """Returns feature key -> value for the features that `values` asks for.

    Args:
        values: engine arguments and other things by name, e.g. the parsed command line.
    """
    keys = [feature.key for feature in FEATURES]
    return {key: values[key] for key in keys if not is_off(values.get(key))}


def changed_engine_args(
    requested: Mapping[str, object], current: Mapping[str, object]
) -> dict[str, object]:
    """Returns the engine arguments that change when the `requested` features are on.

    Args:
        requested: feature key -> value of its flag.
        current: vLLM's engine arguments by name; a missing one has vLLM's default.

    Raises:
        FeatureSettingsError: a value is wrong, or does not go with `current`.
    """
    if not requested:
        return {}
    changed: dict[str, object] = {}
    additional = dict(cast(Mapping[str, object], current.get("additional_config") or {}))
    for feature in FEATURES:
        if feature.key not in requested:
            continue
        if not feature.is_installed:
            raise FeatureSettingsError(f"{feature.flag} is not part of this build of AdaSeek.")
        module = feature.load()
        settings = module.read_settings(requested[feature.key])
        changed |= module.engine_args(settings, {**current, **changed})
        additional[feature.key] = settings
    return {**changed, "additional_config": additional}


def with_features(**engine_args: Any) -> dict[str, Any]:
    """Returns engine arguments for `vllm.LLM(**...)` or `EngineArgs(**...)`.

    Args:
        engine_args: vLLM's own (the values are whatever vLLM takes), with a feature's key
            (`kv_retention`, `token_tree`) beside them: True, "auto", JSON text or a mapping.

    Raises:
        FeatureSettingsError: a feature's value is wrong, or does not go with the others.
    """
    keys = {feature.key for feature in FEATURES}
    plain = {key: value for key, value in engine_args.items() if key not in keys}
    return {**plain, **changed_engine_args(requested_features(engine_args), plain)}
