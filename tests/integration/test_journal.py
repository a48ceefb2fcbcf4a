"""The journal of a whole process: built only with the console, and written until the end."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

from antiphon.app.build import App, build
from antiphon.config.settings import load_settings
from antiphon.engine.ports.journal import Ending, EntryFilter, LiveRequest
from antiphon.stores.sqlite.opening import open_sqlite
from tests.contracts.test_journal import RECORDING, entry
from tests.support.waiting import until


async def _app(folder: Path, **console: Any) -> App:
    upstream = {"url": "http://127.0.0.1:9", "auth": "none"}
    return await build(load_settings({"data": folder, "upstream": upstream, "console": console}), door="http")


async def test_without_the_console_there_is_no_journal(tmp_path: Path) -> None:
    async with aclosing(await _app(tmp_path)) as app:
        assert app.journal is None


async def test_a_process_writes_its_entries_and_reports_its_requests(tmp_path: Path) -> None:
    cancelled: list[str] = []
    live = LiveRequest("req_1", "n:anna", "", "http", "m", "u", "", "streaming", 1.0, 0, None, 1, stored=False)
    async with aclosing(await _app(tmp_path, enabled=True, record="all")) as app:
        assert app.journal is not None
        app.journal.live.snapshot = lambda: [live]
        app.journal.live.cancel = cancelled.append
        await app.stores.live.watch(60.0)
        await app.stores.live.ask_cancel("req_1", "n:anna")
        app.journal.live.ended(Ending("req_0", "n:anna"))
        await until(lambda: cancelled == ["req_1"])
        await app.journal.live.report()
        (snapshot,) = await app.stores.live.read("n:anna")
        assert [one.id for one in snapshot.requests] == ["req_1"] and snapshot.process == app.journal.live.process
        app.journal.recorder.note(entry(1, owner="n:anna", response_id="", stored=True), RECORDING)
        assert await app.journal.sweep() == (0, 0, 0)
    async with aclosing(await open_sqlite(tmp_path, chain_items=1)) as stores:
        (found,) = (await stores.journal.list(EntryFilter())).entries
        assert found.id == "req_1" and found.recorded and await stores.journal.record("req_1", "n:anna") == RECORDING
        # A process that ended is no longer there.
        assert await stores.live.read() == ()
