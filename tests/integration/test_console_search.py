"""The text search of Requests over real processes: what it finds, and whose contents it says that it did not read."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import quote

from antiphon.engine.ports.journal import Entry, Part, Recording
from tests.integration.test_console import ANNA, Place, place
from tests.support.console_app import ANNA as OWNER
from tests.support.console_app import ConsoleApp, open_console_app


async def search(there: Place, text: str) -> str:
    """The words of the page that Anna gets for a text."""
    _, page = await (await there.user(ANNA)).get(f"/console/requests?text={quote(text)}")
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


async def test_a_search_counts_the_requests_that_another_process_holds(tmp_path: Path) -> None:
    async with place(tmp_path) as there, place(tmp_path) as other:
        await there.create(ANNA, input="the needle is here", store=False)
        page = await search(there, "needle")
        assert "1\N{EN DASH}1 of 1" in page and "could not read" not in page
        page = await search(other, "needle")
        assert "No request matches" in page
        assert (
            "could not read the contents of 1 of them, because they set store: false and only another process" in page
        )
        assert "no contents" not in page


async def test_a_search_counts_the_requests_without_contents(tmp_path: Path) -> None:
    async with place(tmp_path, record="off") as there:
        await there.create(ANNA, input="the needle is here", store=False)
        page = await search(there, "needle")
        assert "1 of them has no contents" in page and "could not read" not in page


async def test_a_search_finds_what_json_escapes(tmp_path: Path) -> None:
    async with place(tmp_path) as there:
        await there.create(ANNA, input='Grüße\n"quoted" back\\slash')
        for record in ("Grüße", '"quoted"', "back\\slash", 'grüße "QUOTED"'):
            page = await search(there, record)
            assert "1\N{EN DASH}1 of 1" in page and "only a part" not in page, record


async def test_stored_contents_are_searched_without_a_recording(tmp_path: Path) -> None:
    async with place(tmp_path, record="off") as there:
        await there.create(ANNA, input=[{"role": "user", "content": f'say "w{number}"'} for number in range(101)])
        assert "1\N{EN DASH}1 of 1" in await search(there, '"w0"') and "1\N{EN DASH}1" in await search(there, '"w99"')
        assert "Of 1 of them, Antiphon searched only a part" in await search(there, '"w100"')


async def test_a_search_reads_the_answer_of_a_large_request(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        parts = (Part(0.0, "request", b'"' + b"x" * 2_500_000 + b' end"'), Part(1.0, "event", b'"the answer"'))
        await add(console, Recording(parts))
        assert "1-1 of 1" in (await console.get("/requests?text=the+answer")).words
        page = (await console.get("/requests?text=end")).words
        assert "No request matches" in page and "only a part: at most the first 2.1 MB of the request" in page


async def add(console: ConsoleApp, recording: Recording) -> None:
    journal = console.app.stores.journal
    entry = Entry("entry_1", OWNER, outcome="failed", response_id="resp_1", stored=True, recorded=True)
    await journal.add([entry], {"entry_1": await journal.pack(recording)}, most_bytes=1 << 30)
