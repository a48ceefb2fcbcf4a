"""The console lists refused requests: all of them to operators, and to an owner its own."""

from __future__ import annotations

import html
import re
from pathlib import Path

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.ports.callers import NO_CALLER, Caller
from antiphon.engine.ports.journal import Entry
from tests.support.console_app import ANNA, ConsoleApp, ShownPage, User, open_console_app

_LISTS = ("/live", "/requests?outcome=refused", "/requests?failed=1", "/requests?refused=1")


async def _refused(console: ConsoleApp) -> None:
    telemetry = console.app.context.telemetry
    wrong = Failure("client", "Incorrect API key provided.", 401, "invalid_api_key")
    for number in range(30):
        telemetry.refused("http", f"req_{number}", NO_CALLER, "/v1/responses", wrong, wrong.cause)
    full = Failure("client", "Too many requests.", 429, "too_many_requests", counted=True)
    telemetry.refused("http", "req_anna", Caller(ANNA, "anna"), "/v1/files", full, full.cause)
    journal = console.app.journal
    assert journal is not None
    await journal.recorder.aclose()


async def test_only_operators_see_refusals_of_unknown_owners(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        await _refused(console)
        for path in _LISTS:
            page = (await console.get(path, "operator")).words
            assert "refused 401 invalid_api_key" in page and "/v1/responses" in page
            # Live has only the ten newest rows.
            assert path == "/live" or "refused 401 invalid_api_key \N{MULTIPLICATION SIGN} 20" in page
            assert path == "/live" or "refused 429 too_many_requests /v1/files anna" in page
            users: tuple[User, ...] = ("anna", "bo")
            for user in users:
                words = (await console.get(path, user)).words
                assert "invalid_api_key" not in words and ("429" in words) is (user == "anna")


async def test_a_search_finds_refused_requests_by_their_path(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        await _refused(console)
        words = (await console.get("/requests", "operator")).words
        told = re.search(r"refused requests \((.*?)\), because clients", words)
        assert told is not None and set(told[1].split(", ")) == {"429 too_many_requests", "401 invalid_api_key"}, words
        page = (await console.get("/requests?refused=1&text=v1/files", "operator")).words
        assert "/v1/files anna" in page and "/v1/responses" not in page


async def test_the_page_of_refused_requests_says_how_many_they_are(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        await _refused(console)
        page = await console.get("/requests/req_29", "operator")
        assert page.status == 200 and "This row counts 20 requests" in page.words and "path /v1/responses" in page.words
        assert "Path and id are those of the newest." in page.words and "Antiphon refused the request" in page.words
        assert "owner.keys or owner.api_keys" in page.words and "what to change" not in page.words
        assert (await console.get("/requests/req_29", "anna")).status == 404


async def test_refusals_displace_no_other_requests(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        store = console.app.stores.journal
        await store.add([Entry(f"entry_{number}", ANNA, model="m1", outcome="completed") for number in range(60)])
        refused = [Entry(f"entry_r{at}", "", outcome="refused", status=401, age=(300 - at) / 100) for at in range(300)]
        await store.add(refused)
        live = (await console.get("/live", "operator")).text
        assert live.count('id="r-entry_r') == 10 and live.count('id="r-entry_') == 70
        assert 'href="/console/requests?outcome=refused"' in live
        assert 'href="/console/requests/entry_r299?outcome=refused"' in live, "its neighbours are refusals"
        page = await console.get("/requests?since=1h", "operator")
        assert 'id="r-entry_r' not in page.text and "1-50 of 60" in page.words
        assert "leaves out 300 rows of refused requests" in page.words
        assert 'href="/console/requests?since=1h&amp;refused=1"' in page.text
        assert '<option value="m1"' in page.text and '<option value="refused"' in page.text
        for query, total in (("refused=1", 360), ("outcome=refused", 300)):
            shown = await console.get(f"/requests?{query}", "operator")
            assert f"1-50 of {total}" in shown.words and "leaves out" not in shown.words
        assert "leaves out" not in (await console.get("/requests", "anna")).words
        found = await console.get("/requests?text=entry_1", "operator")
        assert 'id="r-entry_1"' in found.text and "leaves out 300 rows" in found.words
        assert "entry_r" not in (await console.get("/requests/entry_59", "operator")).text


async def test_a_list_updates_the_number_of_refusals_that_it_leaves_out(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        store = console.app.stores.journal

        async def update(page: ShownPage) -> ShownPage:
            found = re.search(r'hx-get="/console(/requests[^"]*than=[^"]*)"', page.text)
            assert found is not None
            return await console.get(html.unescape(found[1]), "operator", fragment=True)

        page = await console.get("/requests", "operator")
        assert "No requests yet" in page.words
        await store.add([Entry("entry_r1", "", outcome="refused", status=401)])
        page = await update(page)
        assert page.status == 200 and "leaves out 1 row of refused requests (401), because" in page.words
        assert (await update(page)).status == 204
