"""A pytest plugin: run only the tests that a list names, and note how each went.

Invariant: the order of the tests is pytest's own, by the order of the files that it is given.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ONLY = "MUTATION_ONLY"
"""A file with the tests to run, one a line."""
NOTES = "MUTATION_NOTES"
"""The file that gets `seconds outcome test` for each."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if only := os.environ.get(ONLY):
        wanted = set(Path(only).read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
        items[:] = [item for item in items if item.nodeid in wanted]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # With several workers each of them sees its own, and their master all of them.
    if (notes := os.environ.get(NOTES)) and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(notes, "a") as file:
            file.write(f"{report.duration:.3f} {report.outcome} {report.nodeid}\n")
