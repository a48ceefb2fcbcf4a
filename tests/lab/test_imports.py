"""Who imports whom: tests know nothing of the programs of the lab, and these need of `tests` what is support.

Lives here: the rule, and the long tests that are excepted. Not here: directions inside of `antiphon` (the import
linter's contracts).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# Whole processes and trees; quick tests check the parts.
pytestmark = pytest.mark.full

REPOSITORY = Path(__file__).parents[2]
LONG_TESTS = {"test_history.py", "test_rollout.py", "test_scale.py", "test_upgrade.py"}
"""Tests of `tests/e2e` that are a short run of a program."""


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield f"{node.module}."
        elif isinstance(node, ast.Import):
            yield from (f"{one.name}." for one in node.names)


def _importers(folder: str, of: str) -> dict[str, set[str]]:
    """The files below a folder that import something of that name, and what they import of it."""
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files
    found = {
        str(one.relative_to(REPOSITORY)): {name for name in _imported(one) if name.startswith(of)} for one in files
    }
    return {file: names for file, names in found.items() if names}


def test_tests_import_no_program_but_for_the_long_ones() -> None:
    importers = {file for file in _importers("tests", "lab.") if not file.startswith("tests/lab/")}
    assert importers == {f"tests/e2e/{name}" for name in LONG_TESTS}


def test_programs_import_of_the_tests_what_is_support() -> None:
    others = {
        (file, name)
        for file, names in _importers("lab", "tests.").items()
        for name in names
        if not name.startswith("tests.support.")
    }
    assert others == set()


def test_what_is_installed_imports_no_program() -> None:
    assert _importers("src", "lab.") == {}
