"""The journal of a whole process: built only with the console, written until the end, and its requests in flight."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from antiphon.app.build import App, build
from antiphon.commands.journal import _tail
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from antiphon.engine.ports.journal import Entry, EntryFilter
from antiphon.entry import main
from antiphon.stores.sqlite.backend import open_sqlite
from tests.support.chat_server import ChatServer, WaitGone, answer, event, text_stream
from tests.support.commands import commands
from tests.support.commands import run_command as start_command
from tests.support.waiting import until

_ASKED = {"model": "m", "input": "hello"}


@dataclass
class Process:
    """A process with the HTTP server, and its model server."""

    app: App
    chat: ChatServer
    url: str
    session: aiohttp.ClientSession

    async def post(self, **changed: Any) -> tuple[int, bytes]:
        async with self.session.post(f"{self.url}/v1/responses", json={**_ASKED, **changed}) as got:
            return got.status, await got.read()

    async def entry(self, **chosen: Any) -> Entry:
        """The newest entry of this filter, as soon as there is one."""
        async with asyncio.timeout(60):
            while not (found := (await self.app.stores.journal.list(EntryFilter(**chosen))).entries):
                await asyncio.sleep(0.01)
        return found[0]


@asynccontextmanager
async def process(folder: Path, **console: Any) -> AsyncIterator[Process]:
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        upstream = {"url": chat.base_url, "auth": "none", "profile": "generic"}
        app = await build(load_settings({"data": folder, "upstream": upstream, "console": console}), door="http")
        door = HttpDoor(app.context)
        try:
            yield Process(app, chat, f"http://{await door.start('127.0.0.1:0')}", session)
        finally:
            await door.aclose()
            await app.aclose()


async def test_without_the_console_there_is_no_journal(tmp_path: Path) -> None:
    async with process(tmp_path) as made:
        assert made.app.journal is None
        assert (await made.post())[0] == 200
    async with aclosing(await open_sqlite(tmp_path, chain_items=1)) as stores:
        assert (await stores.journal.list(EntryFilter())).total == 0


async def test_a_process_writes_the_entries_and_contents_of_its_requests(tmp_path: Path) -> None:
    async with process(tmp_path, enabled=True, record="all") as made:
        assert made.app.journal is not None
        made.chat.script(answer(parts=text_stream("one")))
        assert (await made.post(stream=True))[0] == 200
        entry = await made.entry(outcome="completed")
        assert entry.stored and entry.recorded and entry.response_id
        recording = await made.app.stores.journal.record(entry.id, entry.owner)
        assert recording is not None and {"request", "data", "event"} <= {part.kind for part in recording.parts}
        async with made.session.delete(f"{made.url}/v1/responses/{entry.response_id}") as got:
            assert got.status == 200
        assert await made.app.stores.journal.record(entry.id) is None
        assert await made.app.journal.sweep() == (0, 0, 0)
        # What is noted last is written at the end.
        made.chat.script(answer(parts=text_stream("two")))
        assert (await made.post(stream=True, store=False))[0] == 200
    async with aclosing(await open_sqlite(tmp_path, chain_items=1)) as stores:
        last, first = (await stores.journal.list(EntryFilter())).entries
        assert first.id == entry.id and not last.stored and not last.recorded
        # A process that ended is no longer there.
        assert await stores.live.read() == ()


async def test_contents_of_an_unstored_request_stay_in_the_memory_of_the_process(tmp_path: Path) -> None:
    async with process(tmp_path, enabled=True, record="all", record_unstored=True) as made:
        assert made.app.journal is not None
        assert (await made.post(store=False))[0] == 200
        entry = await made.entry()
        assert entry.recorded and await made.app.stores.journal.record(entry.id) is None
        assert made.app.journal.recorder.held(entry.id, entry.owner) is not None


async def test_a_viewer_sees_and_cancels_requests_in_flight(tmp_path: Path) -> None:
    async with process(tmp_path, enabled=True) as made:
        assert made.app.journal is not None
        live, stores = made.app.journal.live, made.app.stores
        await stores.live.watch(60.0)
        made.chat.script(answer(parts=[event("a"), WaitGone()]))
        asked = asyncio.create_task(made.post(stream=True))
        await until(lambda: any(one.state == "streaming" for one in live.snapshot()))
        await live.report()
        (snapshot,) = await stores.live.read()
        (seen,) = snapshot.requests
        await stores.live.ask_cancel(seen.id, "n:another")
        await live.report()
        assert len(live.snapshot()) == 1
        await stores.live.ask_cancel(seen.id, seen.owner)
        status, body = await asked
        assert status == 200 and b"cancelled_by_operator" in body
        assert (await made.entry(code="cancelled_by_operator")).id == seen.id


async def test_a_viewer_cancels_a_background_response(tmp_path: Path) -> None:
    async with process(tmp_path, enabled=True) as made:
        assert made.app.journal is not None
        live, stores = made.app.journal.live, made.app.stores
        made.chat.script(answer(parts=[event("a"), WaitGone()]))
        assert (await made.post(background=True))[0] == 200
        await until(lambda: any(one.state == "streaming" for one in live.snapshot()))
        (seen,) = live.snapshot()
        assert seen.door == "background"
        await stores.live.ask_cancel(seen.id)
        await until(lambda: live.snapshot() == [])
        found = await stores.responses.get(seen.owner, seen.response_id)
        assert found is not None and found.status == "cancelled"


async def run_command(*words: str) -> int:
    return await asyncio.to_thread(main, list(words))


async def test_commands_explain_an_empty_journal_and_an_unknown_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with process(tmp_path, enabled=True) as made:
        data = ("--data", str(tmp_path))
        assert await run_command("show", "req_1", *data) == 1
        empty = f"the journal in {tmp_path} is empty, and console.enabled is false in these settings."
        assert capsys.readouterr().err.startswith(f"antiphon: req_1: {empty}")
        assert await run_command("tail", "--no-follow", *data) == 0
        assert capsys.readouterr().err.startswith(f"antiphon: {empty}")
        config = tmp_path / "antiphon.yaml"
        config.write_text("console:\n  enabled: true\n")
        assert await run_command("tail", "--no-follow", "--config", str(config), *data) == 0
        assert capsys.readouterr().err == f"antiphon: the journal in {tmp_path} is empty.\n"
        assert (await made.post())[0] == 200
        await made.entry()
        assert await run_command("show", "job-9", *data) == 1
        assert "job-9: the journal has no request with this id. Antiphon may have counted" in capsys.readouterr().err
        assert await run_command("tail", "--no-follow", "--model", "other", *data) == 0
        assert capsys.readouterr().err == "antiphon: no request matches\n"


async def test_commands_write_escapes_where_the_output_has_no_arrow(tmp_path: Path) -> None:
    async with process(tmp_path, enabled=True) as made, commands() as started:
        assert (await made.post())[0] == 200
        entry = await made.entry()
        for words in (("tail", "--no-follow"), ("show", entry.id)):
            ran = await start_command(started, *words, "--data", str(tmp_path), PYTHONIOENCODING="ascii")
            assert await ran.end() == 0, ran.err
            assert " \\u2192 " in "\n".join(ran.out[:2])


async def tail_for(seconds: float, data: Path, *, enabled: bool = False, quiet: bool = True) -> int | None:
    """Run `antiphon tail` on this data folder and stop it after some seconds. `enabled`: whether the settings of the
    command enable the console. Raises `TimeoutError` if the command did not end and `quiet` is False."""
    arguments = argparse.Namespace(
        **dict.fromkeys(("owner", "model", "code")), failed=False, lines=1, json=True, no_follow=False
    )
    with suppress(*[TimeoutError] * quiet):
        async with asyncio.timeout(seconds):
            return await _tail(load_settings({"data": data, "console": {"enabled": enabled}}), arguments)
    return None


@pytest.mark.parametrize("enabled", [False, True])
async def test_tail_says_that_no_gateway_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], enabled: bool
) -> None:
    async with process(tmp_path, enabled=True) as made:
        assert (await made.post())[0] == 200
        await made.entry()
        # The gateway records, even if these settings do not say so.
        await tail_for(4.5, tmp_path, enabled=enabled)
        assert capsys.readouterr().err == ""
    await tail_for(4.5, tmp_path, enabled=enabled)
    told = capsys.readouterr()
    assert told.err.startswith("antiphon: no running gateway records requests") and "console.enabled: true" in told.err
    assert '"outcome": "completed"' in told.out


async def test_tail_ends_if_no_gateway_writes_the_empty_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with process(tmp_path, enabled=True):
        # A gateway with other settings records, so the first request may still come.
        with pytest.raises(TimeoutError):
            await tail_for(4.5, tmp_path, quiet=False)
    async with asyncio.timeout(9):
        assert await tail_for(8.0, tmp_path, quiet=False) == 1
    assert "console.enabled is false in these settings" in capsys.readouterr().err
