"""Which files of tests judge a source file: all of them, in an order, or those likely to notice, in stages.

Lives here: where tests are that may judge, and which of them name a module. Not here: which of them reach a mutant
(`reaching.py`), running them (`trees.py`).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

GATEWAYS = ("tests/e2e", "tests/integration/test_up.py")
"""Tests of whole gateways. They judge last: each start of a gateway costs more than many unit tests."""

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


def likely(root: Path, path: str, files: list[str]) -> list[list[str]]:
    """The test files that are likely to notice a change of a source file, in stages. First come files that name its
    module, then unit tests of its package, then files whose names share a word with it. Within a stage, files with most
    shared words come first."""
    unit = [file for file in files if file.startswith("tests/unit/")]
    group, words = _module(path).partition(".")[0], _words(path.removeprefix("src/antiphon/"))
    shared = {file: len(words & _words(Path(file).name)) for file in files}

    def in_order(stage: set[str]) -> list[str]:
        return sorted(stage, key=lambda file: (-shared[file], files.index(file)))

    direct = set(near(root, path, files))
    package = {file for file in unit if file.startswith(f"tests/unit/{group}/")} | set(around(root, path, unit))
    others = {file for file in files if shared[file]}
    stages = [in_order(stage) for stage in (direct, package - direct, others - direct - package)]
    return [stage for stage in stages if stage]


def _words(path: str) -> set[str]:
    words = re.split(r"[/_.]", path.removesuffix(".py").removeprefix("test_"))
    # `servers` and `server` are one word.
    return {word.rstrip("s") for word in words if len(word) > 2}


def _module(path: str) -> str:
    return path.removeprefix("src/antiphon/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _names(file: Path, module: str) -> bool:
    parent, _, last = module.rpartition(".")
    imported = rf"from antiphon\.{re.escape(parent)} import [^\n]*\b{re.escape(last)}\b"
    return re.search(rf"\bantiphon\.{re.escape(module)}\b|{imported}", _text(file)) is not None


@functools.cache
def _text(file: Path) -> str:
    return file.read_text()
