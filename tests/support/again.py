"""A pytest plugin for `scripts/lab steady`, which runs every test `STEADY_TIMES` times."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def again(request: pytest.FixtureRequest) -> None:
    """The number of the repetition. No test uses the value."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Add the repetition as a parameter to each test."""
    if "again" in metafunc.fixturenames:
        metafunc.parametrize("again", range(int(os.environ.get("STEADY_TIMES", "1"))), indirect=True)
