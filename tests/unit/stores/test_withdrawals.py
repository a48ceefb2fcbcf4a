"""Responses that are taken back once the database is there again: which lines that leaves."""

from __future__ import annotations

import asyncio
from typing import Any

from structlog.testing import capture_logs

from antiphon.errors import StoreError
from antiphon.stores.postgres.responses import LateSaves
from tests.contracts.store_contract import record
from tests.support.fake_time import in_fake_time


class Away:
    """A database that cannot be reached so many times, and then has stored nothing."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def transaction(self, work: Any) -> bool:
        if self.failures:
            self.failures -= 1
            raise StoreError(f"away, {self.failures} more", reason="unavailable")
        return False


def test_what_waited_for_the_database_is_told_when_it_is_done() -> None:
    async def work() -> None:
        late_saves: Any = LateSaves(Away(7))  # type: ignore[arg-type]
        for name in ("a", "b", "c"):
            late_saves.add(record(name))
        await asyncio.sleep(10_000.0)
        late_saves.add(record("d"))
        await asyncio.sleep(10_000.0)
        await late_saves.aclose()

    with capture_logs() as lines:
        in_fake_time(work())
    assert [line["event"] for line in lines] == ["late_save_not_undone_yet", "late_saves_settled"]
    assert lines[0]["error"] == "away, 6 more"
    assert (lines[1]["responses"], lines[1]["failures"]) == (3, 7)
