"""Antiphon touches no private name of a library, and changes no library while it runs: no release promises either."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src" / "antiphon"

# Documented, in spite of their names, and a type that only the stubs of the standard library have.
ALLOWED = {"os._exit", "sys._current_frames", "zlib._Decompress"}
# Documented, and spelled so that no field has the name.
NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
# Python documents that a program sets these.
SETTINGS_OF_PYTHON = {"sys.argv", "os.environ"}
# It is a process's whole program, which runs a client's code as a notebook does.
ALONE = SOURCES / "tools" / "code_interpreter" / "interpreter.py"


def foreign_names(source: str) -> list[str]:
    """Private attributes of other objects that this file does not define itself, as `line: what`."""
    tree = _tree(source)
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and _is_private(node.attr)
        and node.attr not in own
        and ast.unparse(node) not in ALLOWED
        and node.attr not in NAMED_TUPLES
    ]


def inherited_names(sources: Iterable[str]) -> list[str]:
    """Private attributes of `self` that neither the class nor a base of ours sets, as `class: what`."""
    classes = [one for source in sources for one in ast.walk(_tree(source)) if isinstance(one, ast.ClassDef)]
    ours = {one.name: one for one in classes}

    def known(one: ast.ClassDef, seen: frozenset[str] = frozenset()) -> set[str]:
        names = set(_set_by(one))
        for base in one.bases:
            name = _name_of(base)
            if name in ours and name not in seen:
                names |= known(ours[name], seen | {name})
        return names

    return [
        f"{one.name}: {ast.unparse(node)}"
        for one in classes
        if any(_name_of(base) not in ours for base in one.bases)
        for own in [known(one)]
        for node in _within(one)
        if isinstance(node, ast.Attribute) and _is_self(node.value) and _is_private(node.attr) and node.attr not in own
    ]


def _within(one: ast.ClassDef) -> Iterator[ast.AST]:
    """What is in the class, without the classes in it."""
    waiting = list(ast.iter_child_nodes(one))
    while waiting:
        node = waiting.pop()
        if not isinstance(node, ast.ClassDef):
            yield node
            waiting += ast.iter_child_nodes(node)


def _set_by(one: ast.ClassDef) -> Iterator[str]:
    for node in _within(one):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Store()) if _is_self(node.value):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name


def _name_of(base: ast.expr) -> str:
    """The last name of a base: `RequestHandler` of `web.RequestHandler`, `Protocol` of `Protocol[T]`."""
    while isinstance(base, ast.Subscript):
        base = base.value
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _is_self(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


@cache
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


def _sources() -> list[Path]:
    return [path for path in SOURCES.rglob("*.py") if "_pb" not in path.parts]


@pytest.mark.full
def test_no_private_name_of_a_library_is_touched() -> None:
    sources = _sources()
    assert len(sources) > 200
    found = {path.relative_to(SOURCES): foreign_names(path.read_text()) for path in sources}
    assert {path: names for path, names in found.items() if names} == {}
    assert inherited_names(path.read_text() for path in sources) == []


@pytest.mark.full
def test_no_private_name_of_a_library_is_taken_for_something_else() -> None:
    """A class of ours that sets `_x` where a library's base class has one changes what the library does."""
    found, looked_at = [], 0
    for path in _sources():
        tree = _tree(path.read_text())
        libraries_here = set(_from_libraries(tree))
        heirs = [
            one
            for one in tree.body
            if isinstance(one, ast.ClassDef) and any(_root_of(base) in libraries_here for base in one.bases)
        ]
        if not heirs:
            continue
        module = import_module(".".join(("antiphon", *path.relative_to(SOURCES).with_suffix("").parts)))
        for one in heirs:
            made = getattr(module, one.name)
            bases = [base for base in made.__mro__[1:] if base.__module__.partition(".")[0] != "antiphon"]
            looked_at += 1
            taken = {name for base in bases for name in dir(base) if _is_private(name)}
            found += [f"{one.name}: {name}" for name in set(_set_by(one)) & taken]
    assert looked_at > 3 and found == []


def _from_libraries(tree: ast.Module) -> Iterator[str]:
    """The names that are imported from libraries whose classes have a life of their own."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = [(one.name, one.asname or one.name.partition(".")[0]) for one in names]
            case ast.ImportFrom(module=str(module), names=names):
                found = [(module, one.asname or one.name) for one in names]
            case _:
                continue
        for module, name in found:
            top = module.partition(".")[0]
            # A Struct's private names are not seen by its heirs' methods.
            if top not in sys.stdlib_module_names and top not in ("antiphon", "msgspec", "__future__"):
                yield name


def _root_of(base: ast.expr) -> str:
    """The first name of a base: `web` of `web.RequestHandler`."""
    while isinstance(base, ast.Subscript | ast.Attribute):
        base = base.value
    return base.id if isinstance(base, ast.Name) else ""


def test_such_names_are_found() -> None:
    source = "class A:\n    def f(self, other, content):\n        self._x = other._x\n        content._buffer.clear()\n"
    assert foreign_names(source) == ["4: content._buffer"]
    ours = "class B:\n    def f(self):\n        self._mine = 1\n"
    heir = "class C(web.Base, B):\n    def f(self):\n        self._own = self._mine + self._theirs + self._own\n"
    assert inherited_names([ours, heir]) == ["C: self._theirs"]


def patches(source: str) -> list[str]:
    """What this file sets or deletes in what it imports from others, and classes of objects that it changes."""
    tree = _tree(source)
    imported = {
        one.asname or one.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        or (
            isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] not in ("antiphon", "__future__")
        )
        for one in node.names
    }
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute | ast.Subscript)
        and isinstance(node.ctx, ast.Store | ast.Del)
        and (_root_of(node) in imported or (isinstance(node, ast.Attribute) and node.attr == "__class__"))
        and not any(ast.unparse(node).startswith(one) for one in SETTINGS_OF_PYTHON)
    ]


@pytest.mark.full
def test_no_library_is_changed_while_it_runs() -> None:
    found = {path.relative_to(SOURCES): patches(path.read_text()) for path in _sources() if path != ALONE}
    assert {path: names for path, names in found.items() if names} == {}


def test_changes_of_libraries_are_found() -> None:
    source = (
        "import ssl, sys\n"
        "from aiohttp import web\n"
        "ssl.SSLContext.load = later\n"
        "del ssl.SSLContext.load\n"
        "sys.modules['rich'] = None\n"
        "web.Server.handle = mine\n"
        "context.__class__ = Late\n"
        "sys.argv = []\n"
        "own.attribute = 1\n"
    )
    assert [int(one.partition(":")[0]) for one in patches(source)] == [3, 4, 5, 6, 7]
