"""Which files of tests judge a source file: all of them, in an order.

Lives here: where tests are that may judge, and which of them name a module. Not here: which of them reach a mutant
(`reaching.py`), running them (`trees.py`).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

_FOLDERS = ("unit", "contracts", "pitfalls", "properties", "golden", "integration", "faults")


def judges(root: Path) -> list[str]:
    """Every file of tests that may judge."""
    return [
        str(file.relative_to(root)) for name in _FOLDERS for file in sorted((root / "tests" / name).rglob("test_*.py"))
    ]


def near(root: Path, path: str, files: list[str]) -> list[str]:
    """Those of these files of tests that name the module of a source file."""
    module = _module(path)
    return [file for file in files if module.rpartition(".")[2] in Path(file).stem or _names(root / file, module)]


def around(root: Path, path: str, files: list[str]) -> list[str]:
    """Those that name the module or its package, those that name the module first."""
    first, package = near(root, path, files), _module(path).rpartition(".")[0]
    return first + [file for file in files if file not in first and _names(root / file, package)]


def _module(path: str) -> str:
    return path.removeprefix("src/antiphon/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _names(file: Path, module: str) -> bool:
    parent, _, last = module.rpartition(".")
    imported = rf"from antiphon\.{re.escape(parent)} import [^\n]*\b{re.escape(last)}\b"
    return re.search(rf"\bantiphon\.{re.escape(module)}\b|{imported}", _text(file)) is not None


@functools.cache
def _text(file: Path) -> str:
    return file.read_text()
