"""A response that failed leaves one line that says why, whatever failed; a client's own mistakes leave no warning."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.stores.sqlite.backend import SESSIONS_FILE
from antiphon.stores.sqlite.writer import WriterLimits
from antiphon.stores.tables import Statement
from tests.support.background_app import BackgroundApp, processes
from tests.support.chat_server import Answer, Mark, Reset, Wait, answer, event, json_answer, text_stream
from tests.support.http_door import open_http_door, post_bytes
from tests.support.state import needs_sqlite

WARNINGS = ("warning", "error", "critical")
UP, OURS = "upstream", "ours"


def warnings(lines: list[Any]) -> list[dict[str, Any]]:
    """Those of the requests: a sweep that falls into the same moment tells its own failure."""
    return [line for line in lines if line["log_level"] in WARNINGS and line["event"] != "sweep_failed"]


@pytest.mark.parametrize(
    ("said", "fields", "told"),
    [
        (
            json_answer({"error": {"message": "boom"}}, status=500),
            {},
            {"fault": UP, "upstream_status": 500, "status": 500, "cause": "boom", "operation": "call_upstream"},
        ),
        (
            json_answer({"error": {"message": "bad key"}}, status=401),
            {"stream": True},
            {"fault": UP, "upstream_status": 401, "operation": "call_upstream"},
        ),
        (
            answer(parts=[event("a"), Reset()]),
            {"stream": True},
            {"fault": UP, "status": 200, "code": "upstream_cut", "operation": "read_answer"},
        ),
        (answer(parts=[event("a"), Reset()]), {}, {"fault": UP, "status": 502, "operation": "read_answer"}),
    ],
    ids=["500", "401", "cut-stream", "cut-json"],
)
async def test_an_upstreams_failure_is_one_warning(said: Answer, fields: dict[str, Any], told: dict[str, Any]) -> None:
    async with open_http_door() as door:
        door.chat.script(said)
        with capture_logs() as lines:
            got = await door.ask(post_bytes({"model": "m", "input": "x", **fields}))
            assert got.status == told.get("status", got.status)
        (line,) = warnings(lines)
    assert told.items() <= line.items(), line
    assert (line["upstream"], line["outcome"] in ("error", "failed")) == ("default", True)
    assert line["response_id"].startswith("resp_")
    assert "milliseconds" not in line and line["seconds"] >= 0
    assert line["advice"], line


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_wrong_with_an_answer_is_told_in_words_that_quote_nothing_of_it(stream: bool) -> None:
    """Also of a response that leaves nothing at rest; what an upstream says itself is not told of one."""
    page = answer(parts=[b"<html>the secret</html>"], headers=(("content-type", "text/html"),))
    error = json_answer({"error": {"message": "the secret", "code": "upstream_invalid"}})
    for said, cause in ((page, "The upstream's answer is not"), (error, "the upstream's message is not logged")):
        async with open_http_door() as door:
            door.chat.script(said)
            with capture_logs() as lines:
                await door.ask(post_bytes({"model": "m", "input": "x", "store": False, "stream": stream}))
            (line,) = warnings(lines)
        assert line["cause"].startswith(cause) and "secret" not in str(line), line
        assert (line["fault"], line["upstream_status"]) == (UP, 200)
        assert line["code"] != "upstream_invalid" or "Chat Completions server" in line["advice"]


@pytest.mark.parametrize("there", [True, False])
async def test_models_that_an_upstream_does_not_list_are_its_fault(there: bool) -> None:
    async with open_http_door() as door:
        door.chat.script(json_answer({"error": {"message": "boom"}}, status=500))
        if not there:
            await door.chat.stop()
        with capture_logs() as lines:
            got = await door.ask(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
            assert got.status == (500 if there else 502)
        (line,) = warnings(lines)
    assert (line["fault"], line["operation"], line["status"]) == (UP, "list_models", got.status)


async def test_a_clients_own_mistake_is_no_warning() -> None:
    async with open_http_door() as door:
        with capture_logs() as lines:
            got = await door.ask(post_bytes({"model": "m", "input": 1.5}))
            assert got.status == 400
        assert warnings(lines) == []
    (line,) = [line for line in lines if line["event"] == "response"]
    assert (line["fault"], line["status"], line["log_level"]) == ("client", 400, "info")


@pytest.mark.parametrize("stream", [True, False])
async def test_what_it_continues_is_deleted_while_it_runs(stream: bool) -> None:
    """Its client's doing: nobody is called for it, and the client is told what happened."""
    begun, gate = asyncio.Event(), asyncio.Event()
    first, *rest = text_stream("Hello")
    async with open_http_door() as door:
        await door.ask(post_bytes({"model": "m", "input": "x"}))
        (previous,) = door.store.records
        door.chat.script(answer(parts=[first, Mark(begun), Wait(gate), *rest]))
        body = {"model": "m", "input": "x", "stream": stream, "previous_response_id": previous}
        with capture_logs() as lines:
            asked = asyncio.create_task(door.ask(post_bytes(body)))
            await begun.wait()
            gone = await door.ask(post_bytes(method="DELETE", path=f"/v1/responses/{previous}"))
            gate.set()
            got = await asked
        assert gone.status == 200 and warnings(lines) == []
        assert b"could not be stored: a client deleted the previous response while this response ran" in got.body
        if not stream:
            error = json.loads(got.body)["error"]
            told = error["type"], error["param"], error["code"]
            assert (got.status, *told) == (
                *(400, "invalid_request_error", "previous_response_id", "previous_response_not_found"),
            )
    (line,) = [line for line in lines if line["event"] == "response"]
    assert (line["fault"], line["operation"], line["code"]) == ("client", "save", "previous_response_not_found")


async def fill(app: BackgroundApp) -> None:
    """From now on there is no room for another page: what SQLite says of a full disk."""
    await app.sqlite.tables.writer.run([Statement("PRAGMA max_page_count = 1")])


async def make_room(app: BackgroundApp) -> None:
    await app.sqlite.tables.writer.run([Statement("PRAGMA max_page_count = 1000000")])


BIG = "x" * 200_000


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_disk_is_said_to_the_client_in_ready_and_in_the_log(
    tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Others use this machine's disk too, and room that comes back is what `/ready` looks for.
    monkeypatch.setattr("antiphon.stores.sqlite.database.free_bytes", lambda folder: 0)
    async with processes(tmp_path / "data") as made:
        app = await made.start()
        await fill(app)
        with capture_logs() as lines:
            status, text = await post(app, {"model": "m", "input": BIG, "stream": stream})
        told = 200 if stream else 507
        assert status == told and ("response.failed" in text) is stream
        assert "The response could not be stored: the server's disk is full." in text
        (line,) = warnings(lines)
        assert {"fault": OURS, "operation": "save", "status": told}.items() <= line.items()
        assert "the disk is full (SQLITE_FULL)" in line["cause"] and line["response_id"]
        assert await ready(app) == (503, {"status": "unavailable", "reason": "the server's disk is full"})
        await make_room(app)
        assert (await post(app, {"model": "m", "input": BIG}))[0] == 200
        assert (await ready(app))[0] == 200


async def test_a_database_that_was_deleted_is_noticed_before_anything_is_acknowledged(tmp_path: Path) -> None:
    async with processes(tmp_path / "data") as made:
        needs_sqlite()
        app = await made.start()
        assert (await post(app, {"model": "m", "input": "x"}))[0] == 200
        with capture_logs() as lines:
            # What the process writes beside may be the first to notice.
            os.unlink(tmp_path / "data" / SESSIONS_FILE)
            assert await ready(app) == (
                503,
                {
                    "status": "unavailable",
                    "reason": "the database's files were deleted or replaced under the running server",
                },
            )
            status, text = await post(app, {"model": "m", "input": "x"})
        assert status == 503 and '"storage_unavailable"' in text
        # What the process writes beside may have met the end of the file, and says so in lines of its own.
        expected = ["database_lost", "not_ready", "response"]
        assert [line["event"] for line in warnings(lines) if line["event"] in expected] == expected


async def test_a_lock_that_somebody_keeps_is_one_warning(tmp_path: Path) -> None:
    async with processes(tmp_path / "data") as made:
        app = await made.start()
        app.sqlite.tables.writer.limits = WriterLimits(lock_seconds=0.05)
        lock = sqlite3.connect(tmp_path / "data" / SESSIONS_FILE, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        with capture_logs() as lines:
            status, text = await post(app, {"model": "m", "input": "x"})
        lock.execute("ROLLBACK")
        lock.close()
        assert status == 503 and '"storage_locked"' in text
        # What the process does beside may say that it found the lock as well.
        (line,) = [each for each in warnings(lines) if "response_id" in each]
        assert (line["fault"], line["operation"]) == (OURS, "save") and "held the database's lock" in line["cause"]


async def post(app: BackgroundApp, body: dict[str, Any]) -> tuple[int, str]:
    async with asyncio.timeout(60), app.session.post(f"{app.url}/responses", json=body) as got:
        return got.status, await got.text()


async def ready(app: BackgroundApp) -> tuple[int, Any]:
    async with asyncio.timeout(60), app.session.get(f"{app.url.removesuffix('/v1')}/ready") as got:
        return got.status, await got.json()
