"""A plugin of pytest's for `scripts/lab steady`: every test runs `STEADY_TIMES` times."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def again(request: pytest.FixtureRequest) -> None:
    """Which time it is; nobody asks."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One more parameter for each test."""
    if "again" in metafunc.fixturenames:
        metafunc.parametrize("again", range(int(os.environ.get("STEADY_TIMES", "1"))), indirect=True)
