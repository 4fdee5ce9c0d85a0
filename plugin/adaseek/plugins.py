"""Discovery of plugins: cheap, lazy, and never the reason why a run dies.

The name of an entry point in the group `adaseek.adapters` is the root module of the framework
that it serves. The adapter is imported only when that module is already loaded: an object of a
framework that nobody imported cannot exist. Entry points in `adaseek.plugins` (cogs, prices,
listeners) are always loaded.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

import pluggy

from adaseek.errors import PluginError
from adaseek.hooks import PROJECT, Specs

__all__ = ["ADAPTER_GROUP", "PLUGIN_GROUP", "load_plugins"]

ADAPTER_GROUP = "adaseek.adapters"
PLUGIN_GROUP = "adaseek.plugins"
BLOCK_VARIABLE = "ADASEEK_BLOCK_PLUGINS"
"""Environment variable: comma-separated names of plugins that are not to be loaded."""


def load_plugins(extra: Iterable[object] = ()) -> pluggy.PluginManager:
    """Returns a new plugin manager with every usable plugin and the `extra` ones registered.

    An installed plugin that cannot be imported, or that implements a hook wrongly, is named in a
    warning and skipped. Each call makes a manager of its own, so two tuners in one process never
    see each other's plugins.

    Raises:
        PluginError: if one of `extra` implements a hook wrongly: the caller asked for it by name.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Specs)
    blocked = {name.strip() for name in os.environ.get(BLOCK_VARIABLE, "").split(",")}
    for entry in _wanted():
        if entry.name not in blocked:
            _register(manager, entry)
    for plugin in extra:
        if not manager.is_registered(plugin):
            try:
                _add(manager, plugin, name=None)
            except pluggy.PluginValidationError as error:
                raise PluginError(f"The plugin {plugin!r} cannot be used: {error}.") from error
    return manager


def _wanted() -> Iterable[EntryPoint]:
    for entry in sorted(entry_points(group=ADAPTER_GROUP)):
        if entry.name.partition(":")[0] in sys.modules:
            yield entry
    yield from sorted(entry_points(group=PLUGIN_GROUP))


def _register(manager: pluggy.PluginManager, entry: EntryPoint) -> None:
    # A true isolation boundary: a third party's import or a wrong hook may raise anything, and
    # one broken plugin must not take the user's program down.
    try:
        _add(manager, entry.load(), name=f"{entry.group}:{entry.name}")
    except Exception as error:
        distribution = entry.dist.name if entry.dist else "unknown distribution"
        warnings.warn(
            f"The adaseek plugin '{entry.name}' ({entry.value}, from {distribution}) is skipped: "
            f"{type(error).__name__}: {error}. Uninstall or upgrade it, or silence this with "
            f"{BLOCK_VARIABLE}={entry.name}.",
            RuntimeWarning,
            stacklevel=3,
        )


def _add(manager: pluggy.PluginManager, plugin: object, *, name: str | None) -> None:
    """Registers all of `plugin`, or nothing of it."""
    try:
        manager.register(plugin, name=name)
        manager.check_pending()  # raises if the plugin implements a hook that does not exist
    except pluggy.PluginValidationError:
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        raise
