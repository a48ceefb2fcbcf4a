"""When a database that does not answer makes a process unready: by a clock and a database of the test's own."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

import pytest

from antiphon.errors import StoreError, StoreReason
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.health import DatabaseReadiness

PATIENCE = 20.0


class FakeDatabase:
    """Answers, fails for a reason, or is silent."""

    def __init__(self) -> None:
        self.read = self.written = -math.inf
        self.now = 100.0
        self.fails: StoreReason | None = None
        self.silent = False
        self.asked = 0

    async def write(self, sql: str, *, again: bool) -> list[Any]:
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise StoreError(f"It is {self.fails}.", reason=self.fails)
        self.written = self.now
        return []


class Setup:
    def __init__(self) -> None:
        self.database = FakeDatabase()
        self.readiness = DatabaseReadiness(
            cast(Database, self.database), PATIENCE, clock=lambda: self.database.now, answer_seconds=0.01
        )

    async def after(self, seconds: float, *, wrote: bool = False, read: bool = False) -> StoreReason | None:
        """Why it is not ready after so many seconds, at whose end a request did something."""
        self.database.now += seconds
        if wrote:
            self.database.written = self.database.now
        if read:
            self.database.read = self.database.now
        try:
            await self.readiness.ping()
        except StoreError as error:
            return error.reason
        return None


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_what_requests_write_is_evidence_and_nothing_is_asked(setup: Setup) -> None:
    setup.database.fails = "unavailable"
    for _ in range(50):
        assert await setup.after(1.0, wrote=True) is None
    assert setup.database.asked == 0


@pytest.mark.parametrize("reason", ["unavailable", "slow", "read_only", "full", "failed"])
async def test_a_process_that_has_never_written_is_not_ready(setup: Setup, reason: StoreReason) -> None:
    setup.database.fails = reason
    assert await setup.after(0.0, read=True) == reason
    setup.database.fails = None
    assert await setup.after(0.1) is None


@pytest.mark.parametrize("reason", ["unavailable", "slow", "read_only", "full"])
async def test_one_that_was_ready_stays_for_a_while_and_says_why_it_leaves(setup: Setup, reason: StoreReason) -> None:
    assert await setup.after(0.0) is None
    setup.database.fails = reason
    # Also where nobody had asked for long: one question without an answer is no reason.
    assert await setup.after(3600.0) is None
    for _ in range(19):
        assert await setup.after(1.0) is None
    assert await setup.after(1.0) == reason
    setup.database.fails = None
    assert await setup.after(1.0) is None
    setup.database.fails = reason
    assert await setup.after(5.0) is None, "the time begins anew"


async def test_silence_is_told_in_time_and_with_its_cause(setup: Setup) -> None:
    assert await setup.after(0.0) is None
    setup.database.silent = True
    assert await setup.after(5.0) is None
    assert await setup.after(19.0) is None
    assert await setup.after(1.0) == "slow"
    assert setup.database.asked == 2, "those that wait share one question"


@pytest.mark.parametrize(
    ("reason", "ready"),
    [("slow", True), ("locked", True), ("busy", True), ("unavailable", False), ("read_only", False)],
)
async def test_a_slow_database_that_is_read_is_not_away(setup: Setup, reason: StoreReason, *, ready: bool) -> None:
    assert await setup.after(0.0) is None
    setup.database.fails = reason
    said = [await setup.after(5.0, read=True) for _ in range(20)]
    assert (set(said) == {None}) is ready
