"""A disk that stands still while a response is saved: what the client is told is what is stored, in every form."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.stores.sqlite.writer import SqliteWriter, WriterLimits
from tests.support.background_app import BackgroundApp, processes
from tests.support.waiting import until

SOON = 1.0


class Disk:
    """Stands still in the next commit of a response, from the moment at which it cannot be taken back any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.still = False
        self.waiting, self.on = threading.Event(), threading.Event()
        may_commit = SqliteWriter._may_commit

        def slow(writer: SqliteWriter, ran: Any) -> bool:
            may = may_commit(writer, ran)
            statements = [step.sql for unit in ran for step in unit.steps]
            if may and self.still and any("INSERT INTO responses" in sql for sql in statements):
                self.waiting.set()
                assert self.on.wait(20)
            return may

        monkeypatch.setattr(SqliteWriter, "_may_commit", slow)

    def go_on(self) -> None:
        self.still = False
        self.on.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BackgroundApp]:
    async with processes(tmp_path / "data") as made:
        app = await made.start(workers=0)
        yield app


async def post(app: BackgroundApp, path: str, body: Any) -> tuple[int, str]:
    async with asyncio.timeout(60), app.session.post(f"{app.url}{path}", json=body) as got:
        return got.status, await got.text()


async def get(app: BackgroundApp, path: str) -> Any:
    async with asyncio.timeout(60), app.session.get(f"{app.url}{path}") as got:
        return await got.json()


def limit(app: BackgroundApp, settle: float) -> None:
    app.sqlite.tables.writer.limits = WriterLimits(seconds=SOON, settle_seconds=settle)


FORMS: list[dict[str, Any]] = [{}, {"stream": True}, {"background": True}, {"background": True, "stream": True}]


@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=pytest.mark.full if "stream" in form else ()) for form in FORMS],
    ids=["json", "stream", "background", "background-stream"],
)
async def test_what_was_told_as_failed_is_taken_back(app: BackgroundApp, disk: Disk, form: dict[str, Any]) -> None:
    limit(app, 2 * SOON)
    conversation = json.loads((await post(app, "/conversations", {}))[1])["id"]
    body = {"model": "m", "input": "asked", **form}
    if "background" not in form:
        body["conversation"] = conversation
    with capture_logs() as lines:
        disk.still = True
        status, text = await post(app, "/responses", body)
        assert disk.waiting.is_set()
        if "stream" in form and "background" not in form:
            assert status == 200 and "response.failed" in text
        else:
            assert status == 503 and "storage_timed_out" in text
        assert "timeouts.settle" in text
        disk.go_on()
        await until(lambda: any(line["event"] == "late_commit_undone" for line in lines))
    assert (await get(app, "/responses"))["data"] == []
    if "conversation" in body:
        limit(app, 20)
        assert (await get(app, f"/conversations/{conversation}/items"))["data"] == []
        while (again := await post(app, "/responses", {**body, "stream": False}))[0] == 409:
            await asyncio.sleep(0.01)  # its lock is given back as soon as the disk goes on
        assert again[0] == 200
        items = (await get(app, f"/conversations/{conversation}/items"))["data"]
        assert sorted(item["role"] for item in items) == ["assistant", "user"], "the question stands once"


async def test_a_late_commit_that_ends_in_time_is_a_success(app: BackgroundApp, disk: Disk) -> None:
    limit(app, 20)
    disk.still = True
    asking = asyncio.create_task(post(app, "/responses", {"model": "m", "input": "asked"}))
    assert await asyncio.to_thread(disk.waiting.wait, 20)
    await asyncio.sleep(2 * SOON)
    disk.go_on()
    status, text = await asking
    assert status == 200
    assert [each["id"] for each in (await get(app, "/responses"))["data"]] == [json.loads(text)["id"]]


async def test_a_read_that_takes_too_long_is_a_503_that_names_its_setting(app: BackgroundApp) -> None:
    # However fast the disk is.
    app.sqlite.tables.readers.seconds = 0.0
    with capture_logs() as lines:
        status, value = await app.ask("/resp_" + "0" * 48)
        assert (status, value["error"]["code"]) == (503, "storage_timed_out")
        assert "'timeouts.read'" in value["error"]["message"]
        body = {"model": "m", "input": "x", "previous_response_id": "resp_" + "0" * 48}
        status, text = await post(app, "/responses", body)
        assert status == 503 and "'timeouts.read'" in text
    loud = [line for line in lines if line["log_level"] == "warning"]
    told = [line["operation"] for line in loud if "operation" in line]
    assert told == ["store", "load_chain"]
