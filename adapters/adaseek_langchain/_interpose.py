"""Callback-activated interposition: calls of chat models become what a carrier's recipe says.

The entry points of `BaseChatModel` are wrapped once, below which every chat model answers and
above LangChain's response cache. A wrapped method does nothing but look for a `Carrier` among the
callbacks of its call; without one it is the original. `uninstall` puts the originals back.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any  # Any: a call's input and arguments are what the user's model takes

from langchain_core.callbacks.base import BaseCallbackManager
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig

from adaseek_langchain._compat import effective_config
from adaseek_langchain._entry_points import ENTRY_POINTS, MARK, wrapped
from adaseek_langchain._menu import Models
from adaseek_langchain._plan import Tuning, plan
from adaseek_langchain._route import Route
from adaseek_langchain._seam import Carrier, active_carrier, messages_of

__all__ = [
    "EVERYWHERE",
    "by_carrier",
    "carrier_of",
    "install",
    "is_installed",
    "release",
    "uninstall",
]


class Everywhere:
    """Holds the carrier of every call of this process, if there is one.

    It stands in LangChain's list of hooks where a context variable is expected: a context variable
    shows new threads and tasks nothing but its default, which is fixed when it is made, and this
    one shows every one of them the carrier that is on now.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.carrier: Carrier | None = None

    def get(self) -> Carrier | None:
        return self.carrier


EVERYWHERE = Everywhere()
"""Global as LangChain's own list of hooks is: there is one per process."""

_LOCK = threading.RLock()  # a holder may be collected while its own thread is in here
_HOLDERS: dict[int, weakref.finalize[..., Any]] = {}
"""Who needs the wrappers. Global like the class that is wrapped; nothing else is kept here."""

_TUNING = "_adaseek_tuning"
"""Where a carrier keeps what its recipe needs, made once; in a table of ours it would keep the
carrier alive."""


def install(holder: object | None = None) -> None:
    """Wraps the entry points of `BaseChatModel`; a second call wraps nothing again.

    Args:
        holder: what needs them wrapped. When the last holder is gone or has let go, the originals
            are put back. None: until `uninstall`.
    """
    with _LOCK:
        if holder is not None and id(holder) not in _HOLDERS:
            _HOLDERS[id(holder)] = weakref.finalize(holder, _gone, id(holder))
            _HOLDERS[id(holder)].atexit = False
        for name in ENTRY_POINTS:
            original = BaseChatModel.__dict__.get(name)
            if original is not None and not _holds_ours(original):
                setattr(BaseChatModel, name, wrapped(name, original, by_carrier, on_class=True))


def release(holder: object) -> None:
    """Lets go for `holder`; without any other, the original entry points are put back."""
    with _LOCK:
        finalizer = _HOLDERS.get(id(holder))
    if finalizer is not None:
        finalizer()


def _gone(holder: int) -> None:
    with _LOCK:
        _HOLDERS.pop(holder, None)
        if not _HOLDERS:
            uninstall()


def uninstall() -> None:
    """Puts the original entry points back, whoever holds them.

    Where somebody else wrapped ours in the meantime, ours stays underneath; it does nothing
    without a carrier.
    """
    with _LOCK:
        for name in ENTRY_POINTS:
            ours = BaseChatModel.__dict__.get(name)
            if ours is not None and MARK in vars(ours):
                setattr(BaseChatModel, name, vars(ours)[MARK])


def is_installed() -> bool:
    """Returns whether calls of chat models are looked at."""
    return all(_holds_ours(BaseChatModel.__dict__.get(name)) for name in ENTRY_POINTS)


def _holds_ours(method: Any) -> bool:
    """Returns whether `method` is a wrapper of ours, or wraps one in turn."""
    while method is not None:
        if MARK in getattr(method, "__dict__", {}):
            return True
        method = getattr(method, "__wrapped__", None)
    return False


def carrier_of(model: BaseChatModel, config: RunnableConfig) -> Carrier | None:
    """Returns the carrier that a call of `model` under `config` belongs to, or None.

    Of several, one that decides alone, else the innermost one that has a recipe: the nearest to
    the call knows best.

    Args:
        config: its callbacks are those of the call, as `effective_config` finds them.
    """
    given = config.get("callbacks")
    # The first for a call that was given no callbacks at all: LangChain adds it further down.
    everywhere, active = EVERYWHERE.carrier, active_carrier()
    if given is None and model.callbacks is None and everywhere is None and active is None:
        return None
    handlers = (active, everywhere, *_handlers(given), *_handlers(model.callbacks))
    found: Carrier | None = None
    for handler in reversed(handlers):
        if isinstance(handler, Carrier):
            if handler.decides_alone:
                return handler
            if found is None or (found.recipe.is_empty and not handler.recipe.is_empty):
                found = handler
    return found


def _handlers(callbacks: Any) -> list[Any]:
    if isinstance(callbacks, BaseCallbackManager):
        return callbacks.handlers
    return callbacks or []


def by_carrier(
    model: BaseChatModel,
    given: Any,
    config: RunnableConfig | None,
    kwargs: Mapping[str, Any],
    *,
    otherwise: Carrier | None = None,
) -> Route | None:
    """Returns what the carrier of this call makes of it; None if there is none.

    Args:
        otherwise: the carrier of a call whose callbacks were lost on the way.
    """
    effective = effective_config(config)
    carrier = carrier_of(model, effective) or otherwise
    if carrier is None:
        return None
    sent, has_recipe = given, not carrier.recipe.is_empty
    if has_recipe:
        sent = messages_of(given)
        if sent is None:
            return None  # not an input for a chat model: the original says so
    # Two isolation boundaries of production: whatever is wrong with a recipe or with us, the
    # user's program goes on as it would without it.
    try:
        request = carrier.request(model, sent, kwargs, effective)
    except Exception as error:
        carrier.fail_open("", f"{type(error).__name__}: {error}")
        return None
    planned = None
    if has_recipe:
        try:
            planned = plan(request, _tuning(carrier))
        except Exception as error:
            carrier.fail_open(request.step, f"{type(error).__name__}: {error}")
    return Route(request, given, kwargs, planned, carrier, True)


def _tuning(carrier: Carrier) -> Tuning:
    tuning: Tuning | None = vars(carrier).get(_TUNING)
    if tuning is None or tuning.recipe is not carrier.recipe:
        models = Models(carrier.models)
        tuning = Tuning(
            carrier.recipe, models, carrier.rewards, carrier.step, needs_all=carrier.needs_all
        )
        setattr(carrier, _TUNING, tuning)
    return tuning
