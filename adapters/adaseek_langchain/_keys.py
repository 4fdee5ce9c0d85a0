"""Stable names of the steps of a run: pure functions over names, tags and frames.

A step is named by where its call stands in the run tree: the names and positions of the runs
around it, and, wherever the user's own code made the next run, the place in that code. Nothing of
it depends on who invokes the program, on run ids, on threads or on the event loop:

    2.lm                                        the model of `prompt | model`
    1/a/2.lm                                    the same inside `{"a": prompt | model} | ...`
    model/1.lm                                  the model of an agent
    n2/lm@app:build.<locals>.n2+1               called by a graph node, 1 line below its `def`
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import PurePath
from types import FrameType
from typing import NewType

__all__ = [
    "LEAF",
    "StepId",
    "call_site",
    "child_path",
    "position",
    "step_id",
    "tool_step_id",
    "user_frame",
]

StepId = NewType("StepId", str)
"""Id of a step in a workflow and in a recipe; holds no `#`, which marks members of ensembles."""

LEAF = "lm"
"""Stands for the call of a chat model; its class and name may change without a new id."""

_TAG = re.compile(r"(?:seq:step:(\d+)|map:key:(.+)|branch:(.+)|condition:(\d+))$")

_HOST = frozenset({"langchain", "langgraph", "langsmith", "pydantic", "tenacity"})
_OWN = frozenset({"adaseek", "adaseek_langchain"})
_INSTALLED = ("site-packages", "dist-packages")

_MAX_KNOWN = 4096
"""How many names are kept: programs call the same steps again and again, but may name their runs
by the data that they work on."""

_TASK_STARTS = frozenset(
    {"asyncio.events", "asyncio.tasks", "concurrent.futures.thread", "threading"}
)
"""Modules whose frames start another task or thread: what lies above did not make the call."""


def position(tags: Sequence[str] | None) -> str:
    """Returns the place in the parent that structural `tags` name: `2`, `a`, `branch 0`, or ``."""
    return _position(tuple(tags)) if tags else ""


@lru_cache(_MAX_KNOWN)
def _position(tags: tuple[str, ...]) -> str:
    for tag in tags:
        match = _TAG.match(tag)
        if match is not None:
            step, key, branch, condition = match.groups()
            return step or key or (f"branch {branch}" if branch else f"condition {condition}")
    return ""


def child_path(
    parent: Sequence[str], name: str, tags: Sequence[str] | None = None, site: str = ""
) -> tuple[str, ...]:
    """Returns the path of a run inside a run with path `parent`.

    A framework class that already has a position needs no name; a node that the user named does.
    """
    return (*parent, _label(name, position(tags)) + site)


@lru_cache(_MAX_KNOWN)
def _label(name: str, where: str) -> str:
    is_structure = name.startswith("Runnable")
    label = where if where and is_structure else ".".join(part for part in (where, name) if part)
    return _clean(label)


def step_id(
    path: Sequence[str], tags: Sequence[str] | None = None, site: str = "", variant: str = ""
) -> StepId:
    """Returns the id of a chat-model call under a run with path `path`.

    Args:
        tags: the call's own structural tags.
        site: the place in the user's code that made the call, if it is not the parent's.
        variant: tells models apart that stand at one place (a model and its fallbacks).
    """
    return _step_id(tuple(path), position(tags), site, variant)


@lru_cache(_MAX_KNOWN)
def _step_id(path: tuple[str, ...], where: str, site: str, variant: str) -> StepId:
    leaf = f"{where}.{LEAF}" if where else LEAF
    leaf += f"[{variant}]" if variant else ""
    return StepId("/".join((*path, _clean(leaf) + site)))


def tool_step_id(name: str) -> StepId:
    """Returns the id of the step of the tool `name`: one step, wherever it is called."""
    return StepId(f"tool:{_clean(name)}")


def call_site(frame: FrameType) -> str:
    """Returns `@file:function+line`, the line counted from the `def`; no path of the machine.

    The file's own name rather than the module's: a script is `__main__` when it is run.
    """
    code = frame.f_code
    line = (frame.f_lineno or code.co_firstlineno) - code.co_firstlineno
    return _place(code.co_filename, code.co_qualname, line)


@lru_cache(_MAX_KNOWN)
def _place(path: str, function: str, line: int) -> str:
    file = PurePath(path)
    stem = file.stem if file.suffix == ".py" and "ipykernel" not in path else "main"
    return _clean(f"@{stem}:{function}+{line}")


def user_frame() -> FrameType | None:
    """Returns the innermost running frame of the user's code in this task or thread, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module in _TASK_STARTS:
            return None
        if not _is_framework(module):
            return frame
        frame = frame.f_back
    return None


@cache
def _is_framework(module: str) -> bool:
    """Returns whether `module` is the host's, ours or Python's own; by name, since many
    applications are installed packages themselves."""
    root = module.partition(".")[0]
    if root in _OWN or root in sys.stdlib_module_names:
        return True
    if root in _HOST or root.startswith(("langchain_", "langgraph_")):
        # A user's own file may be called `langchain_demo.py`.
        file = getattr(sys.modules.get(root), "__file__", None) or _INSTALLED[0]
        return any(place in file for place in _INSTALLED)
    return False


def _clean(text: str) -> str:
    return text.replace("#", "~").replace("\n", " ")
