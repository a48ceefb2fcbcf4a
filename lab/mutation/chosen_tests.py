"""A pytest plugin that runs only the tests of a list, and writes the outcome of each to a file.

Invariant: the tests run in pytest's own order, in the order of the given files.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ONLY = "MUTATION_ONLY"
"""The environment variable with the path of the list of tests, one per line."""
NOTES = "MUTATION_NOTES"
"""The environment variable with the path of the result file, which gets a line `seconds outcome test` for each test."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if only := os.environ.get(ONLY):
        wanted = set(Path(only).read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
        items[:] = [item for item in items if item.nodeid in wanted]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # With several pytest workers, each worker sees its own tests, and the controller sees all of them.
    if (notes := os.environ.get(NOTES)) and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(notes, "a") as file:
            file.write(f"{report.duration:.3f} {report.outcome} {report.nodeid}\n")
