"""Texts name what is there: a file that a docstring, a comment or a document names in backticks exists.

A name counts from the file's own folder, from the package or from the repository, and a glob or `<name>` names some.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "src" / "antiphon"
DOCUMENTS = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")])
CODE = sorted(path for path in PACKAGE.rglob("*.py") if "_pb" not in path.parts)
_NAMED = re.compile(r"`([\w./*<>-]+\.(?:py|sql|md|proto))(?:::\w+)?`")
_BASES = (PACKAGE, REPOSITORY, PACKAGE.parent)


def _missing(text: str, folder: Path) -> set[str]:
    """Names of files that are nowhere."""
    missing = set()
    for name in _NAMED.findall(text):
        pattern = re.sub(r"<[\w ]+>", "*", name)
        if not any(any(base.glob(pattern)) for base in (folder, *_BASES)):
            missing.add(name)
    return missing


def _texts(path: Path) -> str:
    """The docstrings and the comments of a module."""
    source = path.read_text()
    strings = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    comments = [line for line in source.splitlines() if line.lstrip().startswith("#")]
    return "\n".join([*(one for one in strings if isinstance(one, str)), *comments])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_documents_name_files_that_are_there(path: Path) -> None:
    assert not _missing(path.read_text(), path.parent)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_name_files_that_are_there(path: Path) -> None:
    assert not _missing(_texts(path), path.parent)


def test_the_order_of_imports_is_the_linters() -> None:
    (layers,) = [
        contract["layers"]
        for contract in tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract["name"] == "Layers"
    ]
    floors = []
    for layer in reversed(layers):
        names = [name.strip().removeprefix("antiphon.").replace(".", "/") for name in layer.split("|")]
        floors.append(names[0] if len(names) == 1 else f"{{{', '.join(names)}}}")
    said = " ".join((REPOSITORY / "docs" / "how-it-works.md").read_text().split())
    # What is below the types is for everybody.
    assert f"`{' ← '.join(floors[floors.index('types') :])}`" in said


def test_a_name_of_nothing_is_noticed() -> None:
    assert _missing("in `engine/exchange/states.py` and `nowhere.py`", PACKAGE) == {"nowhere.py"}
