"""Copies a program for one recipe: everything that holds state, but never a language model."""

from __future__ import annotations

import copy
from typing import Any  # Any: a program's attributes are the user's own objects

from adaseek_dspy._compat import BaseModule
from adaseek_dspy._walk import Found

__all__ = ["ProgramCopy", "copy_program"]


class ProgramCopy:
    """A copy of a program, and which of its parts is the copy of what.

    Attributes:
        program: the copy.
        shared: paths of attributes that could not be copied, so that copy and original share them.
    """

    def __init__(self, program: Any, memo: dict[int, Any], shared: tuple[str, ...]) -> None:
        self.program = program
        self.shared = shared
        self._memo = memo

    def copy_of(self, original: Any) -> Any | None:
        """Returns the copy of `original`, None if it is not part of the copy."""
        return self._memo.get(id(original))


def copy_program(program: Any, found: Found) -> ProgramCopy:
    """Returns a copy of `program` whose language models are the original objects.

    A copied language model would lose its connection pool, and a second object for the same
    model makes DSPy believe that several models are in use. DSPy drops instance callbacks when
    it copies a module; they are restored, since the user's tracing hangs on them.
    """
    copier = _Copier({id(lm): lm for lm in found.lms})
    copied = copier.copy(program, "")
    for module in (*found.modules.values(), *found.predictors.values()):
        twin = copier.memo.get(id(module))
        if twin is not None and getattr(module, "callbacks", None):
            twin.callbacks = list(module.callbacks)
    return ProgramCopy(copied, copier.memo, tuple(copier.shared))


class _Copier:
    def __init__(self, memo: dict[int, Any]) -> None:
        self.memo = memo
        self.shared: list[str] = []

    def copy(self, value: Any, path: str) -> Any:
        attempt = dict(self.memo)
        try:
            copied = copy.deepcopy(value, attempt)
        except Exception:
            # The user's objects may refuse to be copied with any exception (locks: TypeError).
            # `attempt` may now hold half-built objects, so it is thrown away.
            return self._piecewise(value, path)
        self.memo.update(attempt)
        return copied

    def _piecewise(self, value: Any, path: str) -> Any:
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, BaseModule):
            return self._module(value, path)
        if isinstance(value, list | tuple):
            items = [self.copy(item, f"{path}[{i}]") for i, item in enumerate(value)]
            return self._remember(value, items if isinstance(value, list) else tuple(items))
        if isinstance(value, dict):
            return self._remember(
                value, {key: self.copy(item, f"{path}[{key!r}]") for key, item in value.items()}
            )
        self.shared.append(path)
        return self._remember(value, value)

    def _module(self, module: Any, path: str) -> Any:
        twin = self._remember(module, module.__class__.__new__(module.__class__))
        for name, value in vars(module).items():
            if name in ("history", "callbacks"):
                setattr(twin, name, [])
            else:
                setattr(twin, name, self.copy(value, f"{path}.{name}" if path else name))
        return twin

    def _remember(self, value: Any, copied: Any) -> Any:
        self.memo[id(value)] = copied
        return copied
