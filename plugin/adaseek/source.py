"""The identity of the user's code: a score is only as good as the code that made it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any  # Any: functions, classes and constants of the user

from adaseek._canonical import canonical_json, fingerprint

__all__ = ["source_identity"]

_CHAIN = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_FOREIGN = frozenset({"site-packages", "dist-packages"})


def source_identity(code: Any) -> str:
    """Returns the qualified name of a function or class, with a hash of the sources it rests on.

    Those are its own source and, through any number of steps, what the sources name in the same
    package or below the same folder: functions, classes and module-level assignments. Installed
    packages are left out. What is reached in another way (an attribute set at run time, a name
    looked up in a dict) goes unnoticed. Without readable source it is the name alone.
    """
    definition, given = _definition(code)
    name = f"{definition.__module__}.{definition.__qualname__}"
    reach = _Reach(_Home.of(definition.__module__))
    reach.follow(definition)
    if not reach.sources:
        return name
    return f"{name}#{fingerprint([reach.sources, given] if given else reach.sources)}"


def _definition(code: Any) -> tuple[Any, str]:
    """Returns the function or class behind `code`, and the arguments bound to it, if any."""
    given = ""
    while isinstance(code, functools.partial):
        given += _shown([list(code.args), code.keywords])
        code = code.func
    return (code if hasattr(code, "__qualname__") else type(code)), given


def _shown(values: Any) -> str:
    try:
        return canonical_json(values)
    except (TypeError, ValueError):
        return ""  # objects without a JSON form, whose text would hold addresses


@dataclass(frozen=True)
class _Home:
    """Where the user's own code lives: a package, and everything below a folder."""

    package: str
    folder: Path | None

    @classmethod
    def of(cls, module_name: str) -> _Home:
        file = _file_of(module_name)
        if file is not None and not _is_own(file):
            return cls("", None)
        return cls(module_name.partition(".")[0], None if file is None else file.parent)

    def has(self, module_name: str) -> bool:
        if self.package and module_name.partition(".")[0] == self.package:
            return True
        file = _file_of(module_name)
        if file is None or self.folder is None:
            return False
        return file.is_relative_to(self.folder) and _is_own(file)


def _file_of(module_name: str) -> Path | None:
    file = getattr(sys.modules.get(module_name), "__file__", None)
    return None if file is None else Path(file).resolve()


def _is_own(file: Path) -> bool:
    standard_library = Path(inspect.__file__).resolve().parent
    return not (_FOREIGN & set(file.parts) or file.is_relative_to(standard_library))


@dataclass
class _Reach:
    """Follows names from definition to definition, each once.

    Attributes:
        sources: qualified name -> source text, of everything reached so far.
    """

    home: _Home
    sources: dict[str, str] = field(default_factory=dict)
    _modules: dict[str, _Bindings] = field(default_factory=dict)

    def follow(self, definition: Any) -> None:
        waiting = [definition]
        while waiting:
            found = waiting.pop()
            key = f"{found.__module__}.{found.__qualname__}"
            if key in self.sources:
                continue
            try:
                self.sources[key] = inspect.getsource(found)
            except (OSError, TypeError):
                continue
            if self.home.has(found.__module__):
                waiting += self._named(self.sources[key], _namespace(found), found.__module__)

    def _named(self, source: str, names: Mapping[str, Any], module: str) -> Iterator[Any]:
        """Yields the definitions that `source` names; assignments are noted on the way."""
        for chain in sorted(_chains(source)):
            first, *rest = chain.split(".")
            value, owner, name = names.get(first), module, first
            while rest and isinstance(value, ModuleType):
                owner, name = value.__name__, rest.pop(0)
                value = getattr(value, name, None)
            if value is None or isinstance(value, ModuleType):
                continue
            value = inspect.unwrap(value) if callable(value) else value
            if inspect.isfunction(value) or inspect.isclass(value):
                if self.home.has(value.__module__):
                    yield value
            elif self.home.has(owner):
                yield from self._assigned(owner, name)

    def _assigned(self, module: str, name: str) -> Iterator[Any]:
        """Notes the assignment of `name`, in the module that it is imported from if need be."""
        bindings = self._bindings(module)
        while name in bindings.imports:
            module, name = bindings.imports[name]
            if not self.home.has(module):
                return
            bindings = self._bindings(module)
        key = f"{module}.{name}"
        text = bindings.assignments.get(name)
        if text is not None and key not in self.sources:
            self.sources[key] = text
            yield from self._named(text, vars(sys.modules[module]), module)

    def _bindings(self, module: str) -> _Bindings:
        if module not in self._modules:
            self._modules[module] = _Bindings.of(module)
        return self._modules[module]


@dataclass(frozen=True)
class _Bindings:
    """What the top level of a module's source binds: name -> text, and name -> where it is from."""

    assignments: Mapping[str, str]
    imports: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, module_name: str) -> _Bindings:
        module = sys.modules.get(module_name)
        try:
            source = inspect.getsource(module) if module is not None else ""
            tree = ast.parse(source)
        except (OSError, TypeError, SyntaxError):
            return cls({}, {})
        texts: dict[str, str] = {}
        imports: dict[str, tuple[str, str]] = {}
        for node in _top_level(tree.body):
            if isinstance(node, ast.ImportFrom):
                origin = _origin(node, getattr(module, "__package__", None) or "")
                imports |= {
                    alias.asname or alias.name: (origin, alias.name) for alias in node.names
                }
            else:
                text = ast.get_source_segment(source, node) or ""
                for name in _targets(node):
                    texts[name] = texts.get(name, "") + text + "\n"
        return cls(texts, imports)


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields imports and assignments of a module, also those under `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.AugAssign):
            yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _top_level(getattr(node, part, []))


def _targets(node: ast.AST) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    for target in targets:
        yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def _origin(node: ast.ImportFrom, package: str) -> str:
    relative = "." * node.level + (node.module or "")
    try:
        return importlib.util.resolve_name(relative, package)
    except ImportError:
        return relative


def _namespace(definition: Any) -> Mapping[str, Any]:
    function = getattr(definition, "__func__", definition)
    code = getattr(function, "__code__", None)
    if code is None:
        return vars(sys.modules[definition.__module__])
    held: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            held[name] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    return {**function.__globals__, **held}


def _chains(source: str) -> set[str]:
    """Returns the dotted names in `source`; of a fragment that is no code of its own, all words."""
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:
        return set(_CHAIN.findall(source))
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute))
    return {chain for node in nodes if (chain := _chain(node))}


def _chain(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""
