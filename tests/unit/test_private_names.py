"""No private name of a library is touched: what it is today nobody promises for tomorrow."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src" / "antiphon"

# Documented, in spite of their names, and a type that only the stubs of the standard library have.
ALLOWED = {"os._exit", "sys._current_frames", "zlib._Decompress"}
# Documented, and spelled so that no field has the name.
NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}


def foreign_names(source: str) -> list[str]:
    """Private attributes of other objects that this file does not define itself, as `line: what`."""
    tree = ast.parse(source)
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.endswith("__")
        and node.attr not in own
        and ast.unparse(node) not in ALLOWED
        and node.attr not in NAMED_TUPLES
    ]


def _is_self(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def test_no_private_name_of_a_library_is_touched() -> None:
    sources = [path for path in SOURCES.rglob("*.py") if "_pb" not in path.parts]
    assert len(sources) > 200
    found = {path.relative_to(SOURCES): foreign_names(path.read_text()) for path in sources}
    assert {path: names for path, names in found.items() if names} == {}


def test_such_names_are_found() -> None:
    source = "class A:\n    def f(self, other, content):\n        self._x = other._x\n        content._buffer.clear()\n"
    assert foreign_names(source) == ["4: content._buffer"]
