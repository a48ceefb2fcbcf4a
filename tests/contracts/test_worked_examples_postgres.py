"""Tests that the worked example of a list operation works on PostgreSQL with the same edits as on SQLite."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.worked_examples import ask

# These tests start whole processes on copied trees. Quick tests check the parts.
pytestmark = pytest.mark.full


async def test_the_list_is_filtered_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    found = await asyncio.to_thread(ask, "A list operation of a store", tmp_path, postgres_url)
    assert found["names"] == ["Greeting"] and found["all"] == ["Farewell", "Greeting"] and found["none"] == []
