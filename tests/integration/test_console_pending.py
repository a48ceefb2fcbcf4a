"""The console's pages of requests that have not ended: their facts, their cancellation, and the finished page."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from antiphon.engine.ports.journal import EntryFilter
from tests.support.chat_server import answer, event
from tests.support.console_browser import header, links
from tests.support.held_console import ANNA, BEARER, BO, TOKEN, held
from tests.support.waiting import until


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


async def test_a_request_in_flight_has_a_page_with_its_contents_so_far(tmp_path: Path) -> None:
    async with held(tmp_path) as there, there.stream() as (live, got):
        anna, bo = await there.user(), await there.user(BO)
        _, listed = await anna.get("/console/live")
        link = f"/console/requests/{live.id}"
        assert link in links(listed)
        for name in (live.id, live.response_id):
            status, page = await anna.get(f"/console/requests/{name}")
            assert status == 200 and "the needle" in page and "demo-model" in page
            assert f"/console/live/{live.id}/cancel" in page
            for shown in ("streaming", "client connected", "upstream default", "1 model call ", "Hello"):
                assert shown in words(page), shown
            assert (await bo.get(f"/console/requests/{name}"))[0] == 404
        facts = await anna.send("GET", link, hx_request="true")
        assert facts.status == 200 and b"streaming" in facts.body and b"the needle" not in facts.body
        there.gate.set()
        await got.read()
        await there.has_ended(1)
        assert header(await anna.send("GET", link, hx_request="true"), "hx-redirect") == link
        assert "Where the time went" in (await anna.get(link))[1]


async def test_a_page_polls_between_the_end_of_a_request_and_its_entry(tmp_path: Path) -> None:
    async with held(tmp_path) as there:
        anna = await there.user()
        facts = await anna.send("GET", "/console/requests/entry_0123", hx_request="true")
        assert facts.status == 200 and b"has ended" in facts.body
        status, page = await anna.get("/console/requests/entry_0123")
        assert status == 404 and 'hx-get="/console/requests/entry_0123?look=1"' in page
        assert (await anna.send("GET", "/console/requests/entry_0123?look=1", hx_request="true")).status == 204
        async with there.stream() as (live, _):
            looked = await anna.send("GET", f"/console/requests/{live.id}?look=1", hx_request="true")
            assert header(looked, "hx-redirect") == f"/console/requests/{live.id}"


async def test_a_request_is_cancelled_on_its_page(tmp_path: Path) -> None:
    async with held(tmp_path) as there, there.stream() as (live, got):
        anna, bo = await there.user(), await there.user(BO)
        fields = {"from": "request"}
        assert (await bo.post(f"/console/live/{live.id}/cancel", **fields)).status == 404
        done = await anna.post(f"/console/live/{live.id}/cancel", **fields)
        assert (done.status, header(done, "location")) == (303, f"/console/requests/{live.id}")
        async with asyncio.timeout(30):
            assert b"cancelled_by_operator" in await got.read()


async def test_the_page_of_a_background_response_that_runs_is_the_live_one(tmp_path: Path) -> None:
    async with held(tmp_path) as there:
        there.holds_answer()
        made = await there.app.create(token=ANNA, input="the needle")
        await until(lambda: any(one.door == "background" and one.tokens for one in there.live), 10)
        await there.has_ended(1)
        anna = await there.user()
        accepted = (await there.app.app.stores.journal.list(EntryFilter(), limit=1)).entries[0]
        assert accepted.outcome == "queued"
        for name in (made["id"], accepted.id):
            _, page = await anna.get(f"/console/requests/{name}")
            assert "/cancel" in page and "/delete" not in page and "attempts 1" in words(page)
            assert "client none" in words(page) and "streaming" in page
        assert f"/console/requests/{made['id']}" in links((await anna.get("/console/background"))[1])
        there.gate.set()
        await there.has_ended(2)
        ended = await there.app.app.stores.journal.get(made["id"])
        assert ended is not None and ended.outcome == "completed"
        for name in (made["id"], accepted.id):
            polled = await anna.send("GET", f"/console/requests/{name}", hx_request="true")
            assert header(polled, "hx-redirect") == f"/console/requests/{ended.id}"
        _, listed = await anna.get("/console/live")
        assert listed.count('id="r-entry_') == 1 and f'id="r-{ended.id}"' in listed


async def test_a_waiting_background_response_can_be_cancelled_on_its_page(tmp_path: Path) -> None:
    async with held(tmp_path, workers=0) as there:
        made = await there.app.create(token=ANNA)
        await there.has_ended(1)
        anna = await there.user()
        _, page = await anna.get(f"/console/requests/{made['id']}")
        assert "waiting" in page and f"/console/background/{made['id']}/cancel" in page and "/delete" not in page


async def test_the_first_paint_of_the_live_page_has_the_requests_of_its_process(tmp_path: Path) -> None:
    async with held(tmp_path) as there, there.stream() as (live, _):
        _, page = await (await there.user()).get("/console/live")
        assert "1 in flight in 1 process" in words(page) and f'id="l-{live.id}"' in page
        assert f'<tr id="l-{live.id}" data-row tabindex="-1">' in page


async def test_the_audit_has_a_row_for_each_read_of_the_contents_of_a_request_in_flight(tmp_path: Path) -> None:
    async with held(tmp_path) as there, there.stream() as (live, _):
        operator, audit = await there.user(TOKEN), there.app.app.stores.audit
        for _ in range(2):
            await operator.send("GET", f"/console/requests/{live.id}", hx_request="true")
        assert not await audit.list()
        assert "the needle" in (await operator.get(f"/console/requests/{live.id}"))[1]
        (row,) = await audit.list()
        assert (row.action, row.object, row.owner) == ("read response", live.response_id, "n:anna")


@pytest.mark.parametrize("store", [True, False])
async def test_contents_in_flight_are_shown_only_if_the_settings_record_them(tmp_path: Path, store: bool) -> None:
    async with held(tmp_path) as there, there.stream(store=store) as (live, _):
        _, page = await (await there.user()).get(f"/console/requests/{live.id}")
        assert ("the needle" in page) is store and "streaming" in page


async def test_the_live_page_says_that_a_client_disconnected(tmp_path: Path) -> None:
    async with held(tmp_path) as there:
        there.holds_answer()
        body = {"model": "demo-model", "input": "hi", "stream": True}
        headers = {**BEARER, "idempotency-key": "one"}
        got = await there.app.session.post(f"{there.app.url}/responses", json=body, headers=headers)
        await until(lambda: [one.client for one in there.live] == ["connected"])
        got.close()
        await until(lambda: [one.client for one in there.live] == ["gone"])
        _, page = await (await there.user()).get("/console/live")
        assert "client gone" in words(page)
        there.gate.set()


async def test_the_live_page_says_that_a_client_does_not_read(tmp_path: Path) -> None:
    async with held(tmp_path) as there:
        chunk = event({"id": "c", "choices": [{"index": 0, "delta": {"content": "x" * 100_000}}]})
        there.chat.script(answer(parts=[chunk] * 300))
        body = {"model": "demo-model", "input": "hi", "stream": True}
        async with there.app.session.post(f"{there.app.url}/responses", json=body, headers=BEARER):
            await until(lambda: [one.client for one in there.live] == ["slow"])
            _, page = await (await there.user()).get("/console/live")
            assert "client slow" in words(page)
